"""Socket types of our own. No other pack passes these; `IPADAPTER`, which one does, is another object."""

from comfy_api.latest import io

Adapter = io.Custom("SEMBLANCE_ADAPTER")
Reference = io.Custom("SEMBLANCE_REFERENCE")
Trajectory = io.Custom("SEMBLANCE_TRAJECTORY")
TextTower = io.Custom("SEMBLANCE_TEXT_TOWER")
SubjectWords = io.Custom("SEMBLANCE_SUBJECT_WORDS")
Subject = io.Custom("SEMBLANCE_SUBJECT")
Regions = io.Custom("SEMBLANCE_REGIONS")
Scores = io.Custom("SEMBLANCE_SCORES")
FrameWeights = io.Custom("SEMBLANCE_FRAME_WEIGHTS")
StyleAdapter = io.Custom("SEMBLANCE_STYLE_ADAPTER")
