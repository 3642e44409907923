"""The pictures of notebook 00 show what they are given."""

import matplotlib.pyplot as plt
import pytest
import torch

from qlora_kit import course
from qlora_kit.figures import nb00 as figures
from qlora_kit.memory import architectures


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_photograph_is_a_matrix_of_a_full_range():
    photo = figures.portrait()
    assert photo.shape == (600, 512)
    assert photo.numel() % 64 == 0  # it can be cut into blocks
    assert (photo.min(), photo.max()) == (-1, 1)


def test_photos_stand_side_by_side_with_one_scale_of_grey():
    pictures = {"a": torch.eye(3), "b": torch.zeros(3, 3)}
    row = figures.photos(pictures).axes
    assert [axes.get_title() for axes in row] == list(pictures)
    for axes, matrix in zip(row, pictures.values(), strict=True):
        [image] = axes.images
        assert torch.equal(torch.as_tensor(image.get_array()), matrix)
        assert image.get_clim() == (-1, 1)


def test_the_path_is_the_course():
    figure = figures.path(course.STAGES)
    road = figure.axes[0].lines[0].get_ydata()
    assert list(road) == [0, sum(stage.number.isdigit() for stage in course.STAGES) - 1]
    shown = texts(figure)
    assert len(shown) == 4 * len(course.STAGES)
    for place, stage in enumerate(course.STAGES):
        number, title, outcome, takes = shown[4 * place : 4 * place + 4]
        assert (number, title) == (stage.number, stage.title)
        assert outcome.replace("\n", " ") == stage.outcome
        assert takes == f"{stage.minutes:g} min, {stage.gigabytes:g} GB"


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "gemma-3-1b-pt"])
def test_the_transformer_has_the_seven_matrices_in_their_sizes(name):
    architecture = architectures.find(name)
    figure = figures.transformer(architecture)
    shown = texts(figure)
    for matrix, (outputs, inputs) in architecture.linears().items():
        assert f"{matrix}\n{outputs} x {inputs}" in shown
    assert f"one of the {architecture.layers} layers" in shown
    assert f"layer {architecture.layers - 1}" in shown
    orange = plt.matplotlib.colors.to_rgba(figures.ORANGE)
    adapters = [patch for patch in figure.axes[0].patches if patch.get_facecolor() == orange]
    assert len(adapters) == 7 + 1  # and the legend's
