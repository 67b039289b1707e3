"""Runs in which a story cannot be told."""

from __future__ import annotations

from ...engine.layout import BatchLayout
from ...engine.moment import RunPlan
from ...engine.unexpected import UnexpectedCall
from ...references.trajectory import ReferenceTrajectory
from ...subjects.user_masks import UserMasks
from ...subjects.words import SubjectWords
from .features import FEATURES_SIGMA

CROPPED = (
    "An area conditioning shows the model a crop of the pictures, where subjects cannot be followed. Remove "
    "Conditioning (Set Area)."
)
STORY_LADDER = (
    "Use KSampler with the scheduler ddim_uniform and as many steps, or the SIGMAS of Invert Image (edit-friendly) "
    "with skip at 0, and a sampler that evaluates the model once a step, such as euler or ddim."
)
"""What gives a story the noise levels of its pictures. SIGMAS with steps skipped would start the scenes too low."""


def check_story(plan: RunPlan, words: SubjectWords, masks: UserMasks | None, acts: bool) -> None:
    """Raises ValueError for a run whose images are not the scenes of `words`, or are not shown whole."""
    if plan.images != words.scenes:
        raise ValueError(
            f"The story has {words.scenes} scenes but the latent {plan.images} images. Set the batch size of "
            "Empty Latent Image to the count that Story Prompts gives."
        )
    if acts and words.text not in plan.tags:
        raise ValueError(
            "The sampler's positive conditioning is not the one that Story Prompts made with these subject words, so "
            "the subject cannot be found in it. Connect conditioning and subject_words of one Story Prompts. Words for "
            "all scenes belong in its style: Conditioning (Concat) must not put another prompt before the story's."
        )
    if plan.conflicts:
        raise ValueError(
            f"{' and '.join(sorted(plan.conflicts))} on the same model changes which tokens the images share. "
            "Bypass it."
        )
    if plan.cropped and acts:
        raise ValueError(CROPPED)
    if plan.window is not None and acts:
        raise ValueError(
            f"Context windows show the model {plan.window} of {plan.images} images at once, but the images of a story "
            "must see each other. Bypass the context windows, or make the window as long as the story."
        )
    if plan.device_count > 1:
        raise ValueError(
            f"The model is spread over {plan.device_count} GPUs, but the images of a story share what is found on one. "
            "Bypass MultiGPU CFG Split."
        )
    if masks is not None and len(masks.mask.values) not in (1, plan.images):
        raise ValueError(
            f"There are {len(masks.mask.values)} subject masks for {plan.images} images. Connect one mask, or "
            "one for each image."
        )


def check_features(plan: RunPlan) -> None:
    """Raises ValueError for a run that ends before the noise level at which parts are matched."""
    end = plan.moments[-1].sigmas[-1]
    if end > FEATURES_SIGMA:
        raise ValueError(
            f"The sampler ends at sigma {end:.3g}, but which parts of the subject match is seen at sigma "
            f"{FEATURES_SIGMA:.3g}, so nothing can be copied. Set injection to 0, let one sampler take all steps, or "
            "end this one later."
        )


def check_pictures(plan: RunPlan, pictures: ReferenceTrajectory, anchors: int) -> None:
    """Raises ValueError for inverted pictures that cannot be the first of so many anchors."""
    if pictures.images > anchors:
        raise ValueError(
            f"There are {pictures.images} inverted pictures, but the story has {anchors} anchors. Set anchors "
            f"to {pictures.images}, and begin the scenes with a line for each picture that says what it shows."
        )
    pictures.check_channels(plan.channels)
    if pictures.size != plan.size:
        (height, width), (rows, columns) = pictures.size, plan.size
        raise ValueError(
            f"The inverted pictures are {width}x{height} in the latent, but the story's images {columns}x{rows}. "
            "Make both of one size."
        )
    for moment in plan.moments:
        pictures.index(moment.sigma, STORY_LADDER)  # refuses a level between its points
    top = pictures.sigmas[-1]
    if plan.empty and plan.start < top * (1 - pictures.TOLERANCE):
        raise ValueError(
            f"The sampler starts at noise level {plan.start:.4g}, but the inverted pictures begin at {top:.4g}: the "
            "other scenes would start from too little noise and come out washed out. Use KSampler with the scheduler "
            f"ddim_uniform, {pictures.steps} steps and denoise 1, or set skip to 0 at Invert Image (edit-friendly)."
        )


def whole_picture(layout: BatchLayout) -> tuple[int, int]:
    """The latent's height and width. Raises ValueError if the model is shown a part of it or of the batch."""
    if any(chunk.crop is not None for chunk in layout.chunks):
        raise ValueError(CROPPED)
    if layout.window is not None:
        raise UnexpectedCall(
            f"The model is shown {layout.images} of {layout.batch_images} images, but the images of a story must see "
            "each other.",
            "Bypass the node that divides the batch, as context windows do.",
        )
    if layout.latent_size is None:
        raise UnexpectedCall(
            "The model is shown parts of the pictures and not told which, so subjects cannot be followed.",
            "Bypass the node that cuts the pictures up, as Tiled Diffusion does.",
        )
    return layout.latent_size
