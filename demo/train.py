"""Trains the small models: `python -m demo.train autoencoder`, and so on; a run killed goes on from its checkpoint."""

import argparse

import torch

from harness.library import use_library

from .training.loop import Plan

MUON = 3.0  # times the learning rate: of steps on the matrices of UNets
FLOW_MUON = 20.0  # of the transformer, which learnt the faster the larger it was, from 3 to 25
_UNET_STEPS = {"sdxl": 12_000, "sd15": 2_000}  # the second starts from the first


def main(given: list[str] | None = None) -> None:
    arguments = _arguments(given)
    torch.set_num_threads(arguments.threads)
    use_library(cpu=not torch.cuda.is_available())
    _COMMANDS[arguments.model](arguments)


def _autoencoder(arguments: argparse.Namespace) -> None:
    from .training.autoencoder import train_autoencoder

    plan = Plan("autoencoder", arguments.steps or 4000, 8e-4, arguments.seed, checkpoint_every=100)
    train_autoencoder(plan)


def _decoder(arguments: argparse.Namespace) -> None:
    from .training.autoencoder import refine_decoder

    plan = Plan("decoder", arguments.steps or 3000, 4e-4, arguments.seed + 100_000, checkpoint_every=250)
    refine_decoder(plan)


def _text(arguments: argparse.Namespace) -> None:
    from .training.encoders import TEXT_RUN, train_text

    train_text(Plan(TEXT_RUN, arguments.steps or 1600, 2e-3, arguments.seed, weight_decay=0.02))


def _vision(arguments: argparse.Namespace) -> None:
    from .training.encoders import train_vision

    train_vision(Plan("clip_vision", arguments.steps or 4000, 1e-3, arguments.seed, weight_decay=0.02))


def _unet(arguments: argparse.Namespace) -> None:
    from .training.unet import train_unet

    steps = arguments.steps or _UNET_STEPS[arguments.topology]
    plan = Plan(f"unet_{arguments.topology}", steps, 1e-3, arguments.seed, average=0.998, muon=MUON)
    train_unet(plan, arguments.topology)


def _flow(arguments: argparse.Namespace) -> None:
    from .training.flow import train_flow

    plan = Plan("transformer_flux", arguments.steps or 8600, 1e-3, arguments.seed, average=0.998, muon=FLOW_MUON)
    train_flow(plan, arguments.compile)


def _vq(arguments: argparse.Namespace) -> None:
    from .training.vq import train_vq

    train_vq(Plan("vq", arguments.steps or 3000, 2e-3, arguments.seed, checkpoint_every=500))


def _masked(arguments: argparse.Namespace) -> None:
    from .training.masked import train_masked

    name = "transformer_amused"
    train_masked(Plan(name, arguments.steps or 4200, 1e-3, arguments.seed, average=0.998, muon=FLOW_MUON))


def _adapter(arguments: argparse.Namespace) -> None:
    from .training.adapter import train_adapter

    parts = ["ipadapter/semblance_demo", arguments.topology]
    parts += [] if arguments.variant == "base" else [arguments.variant]
    parts += ["style"] if arguments.blocks else []
    plan = Plan("_".join(parts), arguments.steps or 3000, 2e-3, arguments.seed, average=0.995)
    train_adapter(plan, arguments.topology, arguments.variant, arguments.blocks)


def _words(arguments: argparse.Namespace) -> None:
    from .training.words import train_words

    name = "loras/semblance_demo_words"
    train_words(Plan(name, arguments.steps or 600, 4e-3, arguments.seed, average=0.98, checkpoint_every=100))


def _judge(arguments: argparse.Namespace) -> None:
    from .training.judge import train_judge

    train_judge(Plan("judge", arguments.steps or 2400, 2e-3, arguments.seed + 500_000, weight_decay=0.02))


_COMMANDS = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "text": _text,
    "vision": _vision,
    "unet": _unet,
    "flow": _flow,
    "vq": _vq,
    "masked": _masked,
    "adapter": _adapter,
    "words": _words,
    "judge": _judge,
}


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("model", choices=list(_COMMANDS))
    parser.add_argument("--topology", choices=["sdxl", "sd15"], default="sdxl")
    parser.add_argument("--steps", type=int, help="how many steps in all (default: the model's own)")
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--variant", choices=["base", "plus"], default="base", help="adapter: which projector")
    parser.add_argument("--blocks", nargs="*", default=[], help="adapter: train these blocks alone, e.g. output.1")
    parser.add_argument("--compile", action="store_true", help="flow: compile it, which needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
