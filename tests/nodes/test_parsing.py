"""What a user types of blocks and curves is read, or refused in a sentence."""

from __future__ import annotations

import pytest

from semblance.nodes.parsing import parse_block_weights, parse_keyframes, read_captions

KNOWN = ("input.8", "middle.0", "output.1")


def test_block_weights_are_read_with_or_without_a_number() -> None:
    assert parse_block_weights(" output.1 = 1.0,input.8=0.4,\n middle.0, ", KNOWN) == {
        "output.1": 1.0,
        "input.8": 0.4,
        "middle.0": 1.0,
    }
    assert parse_block_weights("output.1=-.5", KNOWN) == {"output.1": -0.5}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("output.9=1", "no block called 'output.9'.*Its blocks are: input.8, middle.0, output.1"),
        ("output.1=strong", "'strong' is not a number .the weight of 'output.1'."),
        ("output.1=nan", "'nan' is not a number"),
        ("output.1=inf", "'inf' is not a number"),
        ("output.1=1e30", "'1e30' is too large a number to make a picture with .the weight of 'output.1'."),
        ("output.1=", "'' is not a number"),
        ("", "No block is named. Write for example: input.8=1.0"),
        (" ,\n, ", "No block is named"),
        ("output.1:0.5", "no block called 'output.1:0.5'"),
    ],
)
def test_block_weights_that_cannot_be_read_are_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_block_weights(text, KNOWN)


def test_keyframes_are_read_in_any_order() -> None:
    assert parse_keyframes("1:0, 0:1.0,\n 0.5:.3") == ((0.0, 1.0), (0.5, 0.3), (1.0, 0.0))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no points"),
        ("0.5", "'0.5' is not a point of a curve"),
        ("0:high", "'high' is not a number .the weight."),
        ("start:1", "'start' is not a number .the place."),
        ("1.2:1", "must lie between 0"),
        ("-0.1:1", "must lie between 0"),
        ("nan:1", "'nan' is not a number"),
        ("0:-1e30", "'-1e30' is too large a number"),
    ],
)
def test_keyframes_that_cannot_be_read_are_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_keyframes(text)


def test_captions_are_the_lines_of_a_text_or_the_items_of_a_list() -> None:
    assert read_captions(["a fox\n\n  a hare  \n"]) == ["a fox", "a hare"]
    assert read_captions(["a fox\nin the snow", " a hare", ""]) == ["a fox\nin the snow", "a hare", ""]
    assert read_captions([""]) == read_captions([]) == []


def test_numbers_as_captions_are_whole_and_without_the_dust_of_floats() -> None:
    assert read_captions([0.1 + 0.2, 1.0, 42, 1125899906842624, 1e-5]) == [
        "0.3",
        "1",
        "42",
        "1125899906842624",
        "1e-05",
    ]
    assert read_captions([0.5]) == ["0.5"]
