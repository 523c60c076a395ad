import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn import metrics

from tasks.image_classification.evaluate import (
    Prediction,
    class_scores,
    class_table,
    confusion_matrix,
    draw_confusion,
    draw_mistakes,
    measure,
    worst_mistakes,
)

CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


@pytest.fixture
def truth():
    return np.random.default_rng(1).integers(0, 6, 97)  # there is no gnu


@pytest.fixture
def probabilities(truth):
    logits = np.random.default_rng(2).normal(size=(97, 7)) * 2 + 2 * np.eye(7)[truth]
    logits[:, 3] -= 15  # nothing is taken for a dog
    powers = np.exp(logits)
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def predictions(truth, probabilities):
    return list(map(Prediction, probabilities, truth.tolist()))


def calibration_error(probabilities, truth):
    """Guo et al. (2017), equation 3, with 15 bins."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    error = 0.0
    for lower in range(15):
        inside = (confidence > lower / 15) & (confidence <= (lower + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_metrics_are_those_of_sklearn(predictions, truth, probabilities):
    labels, exact = range(7), probabilities.astype(float)
    expected = {
        "loss": metrics.log_loss(truth, exact / exact.sum(1, keepdims=True), labels=labels),
        "top1": 100 * metrics.accuracy_score(truth, probabilities.argmax(1)),
        "top5": 100 * metrics.top_k_accuracy_score(truth, probabilities, k=5, labels=labels),
        "balanced": 100
        * metrics.recall_score(truth, probabilities.argmax(1), labels=np.unique(truth), average="macro"),
        "ece": 100 * calibration_error(probabilities, truth),
    }
    assert measure(predictions, CLASSES) == pytest.approx(expected, rel=1e-5)
    assert 20 < expected["top1"] < expected["top5"] < 100 and expected["ece"] > 1


def test_metrics_of_four_images_are_those_worked_out_by_hand():
    rows = [(0.5, 0.5 - 1 / 64, 1 / 64), (0.25, 0.5, 0.25), (0.125, 0.125, 0.75), (0.75, 0.125, 0.125)]
    predictions = [Prediction(np.array(row), label) for row, label in zip(rows, (0, 1, 2, 1), strict=True)]
    # -log of 1/2, 1/2, 3/4 and 1/8; confidence 1/2 is right both times, 3/4 once of twice.
    loss = (1 + 1 + 3 + 2 - np.log2(3)) * np.log(2) / 4
    assert measure(predictions, ["a", "b", "c"]) == pytest.approx(
        {"loss": loss, "top1": 75.0, "balanced": (100 + 50 + 100) / 3, "ece": 37.5}
    )


@pytest.mark.parametrize(("count", "shown"), [(5, False), (6, True)])
def test_top5_is_shown_only_where_it_says_something(count, shown):
    predictions = [Prediction(np.full(count, 1 / count, np.float32), 0)]
    assert ("top5" in measure(predictions, [str(number) for number in range(count)])) == shown


def test_a_probability_of_zero_costs_much_and_not_everything():
    loss = measure([Prediction(np.array([1.0, 0.0]), 1)], ["a", "b"])["loss"]
    assert loss == pytest.approx(126 * np.log(2))


def test_a_diverged_model_has_no_loss():
    assert np.isnan(measure([Prediction(np.full(3, np.nan), 1)] * 2, ["a", "b", "c"])["loss"])


def test_the_confusion_matrix_is_that_of_sklearn(predictions, truth, probabilities):
    matrix = confusion_matrix(predictions, CLASSES)
    expected = metrics.confusion_matrix(truth, probabilities.argmax(1), labels=range(7))
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == expected.tolist()
    assert (expected != expected.T).any()


def test_scores_of_classes_are_those_of_sklearn(predictions, truth, probabilities):
    scores = class_scores(predictions, CLASSES)
    columns = metrics.precision_recall_fscore_support(
        truth, probabilities.argmax(1), labels=range(7), zero_division=np.nan
    )
    for name, expected in zip(("precision", "recall", "f1", "images"), columns, strict=True):
        got = [np.nan if (value := getattr(each, name)) is None else value for each in scores]
        assert got == pytest.approx(expected.tolist(), nan_ok=True, rel=1e-6)
    assert [each.name for each in scores] == CLASSES
    assert scores[3].precision is None and scores[3].recall == 0
    assert scores[6].recall is None and scores[6].images == 0 and scores[6].precision == 0


def sure(label, called, probability=0.9):
    rest = (1 - probability) / 3
    return Prediction(np.where(np.arange(4) == called, probability, rest).astype(np.float32), label)


def test_a_class_is_taken_for_what_it_is_called_most_often():
    predictions = [sure(*pair) for pair in ((0, 0), (0, 2), (0, 1), (0, 2), (1, 1), (2, 0), (2, 2))]
    scores = class_scores(predictions, ["a", "b", "c", "d"])
    assert [(each.right, each.taken_for, each.times) for each in scores] == [
        (1, "c", 2),
        (1, None, 0),
        (1, "a", 1),
        (0, None, 0),
    ]


def test_the_table_shows_counts_and_percent_and_a_dash_where_there_is_nothing():
    predictions = [sure(*pair) for pair in ((0, 0), (0, 2), (0, 1), (0, 2), (1, 1), (2, 0), (2, 2))]
    console = Console(width=100)
    with console.capture() as shown:
        console.print(class_table(predictions, ["ant", "bee", "cat", "dog"]))
    rows = {cells[0]: cells[1:] for line in shown.get().splitlines() if (cells := line.replace("│", " ").split())}
    assert rows["ant"] == ["4", "1", "50.0", "25.0", "33.3", "cat", "(2)"]
    assert rows["bee"] == ["1", "1", "50.0", "100.0", "66.7", "-"]
    assert rows["dog"] == ["0", "0", "-", "-", "-", "-"]


def test_the_worst_mistakes_are_the_most_confident_ones():
    predictions = [sure(0, 1, 0.6), sure(0, 0, 0.99), sure(2, 3, 0.8), sure(1, 0, 0.6), sure(3, 2, 0.7)]
    assert worst_mistakes(predictions, 9) == [2, 4, 0, 3]
    assert worst_mistakes(predictions, 2) == [2, 4]
    assert worst_mistakes(predictions[1:2], 2) == []


def test_confidence_counts_and_not_what_was_left_for_the_truth():
    rows = [Prediction(np.array(each, np.float32), 2) for each in ([0.5, 0.4, 0.1], [0.6, 0.05, 0.35])]
    assert worst_mistakes(rows, 2) == [1, 0]


def test_a_prediction_is_sent_without_its_batch():
    batch = torch.rand(1000, 10).numpy()
    assert len(pickle.dumps(Prediction(batch[3], 1))) < 500


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], r"predictions=\[\] cannot be measured: give at least one"),
        ([Prediction(np.ones(3) / 3, 0)], "prediction 0 has 3 probabilities for 4 classes: give one for each"),
        ([sure(0, 0), sure(4, 0)], "prediction 1 has label=4: choose 0 to 3"),
        ([sure(-1, 0)], "prediction 0 has label=-1: choose 0 to 3"),
    ],
)
@pytest.mark.parametrize("judge", [measure, confusion_matrix, class_scores, class_table])
def test_predictions_that_do_not_fit_the_classes_are_refused(judge, predictions, message):
    with pytest.raises(ValueError, match=message):
        judge(predictions, ["a", "b", "c", "d"])


def opened(path):
    with Image.open(path) as picture:
        picture.load()
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("count", [2, 23, 51])
def test_a_picture_of_the_confusion_matrix_shades_what_is_there(tmp_path, count):
    names = [f"${number}^$ with quite a long name" for number in range(count)]
    draw_confusion(torch.eye(count, dtype=torch.int64) * 3, names).savefig(tmp_path / "right.png")
    draw_confusion(torch.zeros(count, count, dtype=torch.int64), names).savefig(tmp_path / "empty.png")
    right, empty = opened(tmp_path / "right.png"), opened(tmp_path / "empty.png")
    dark = [((picture[..., 2] > picture[..., 0] + 60).mean()) for picture in (right, empty)]
    assert dark[0] > 0.01 and dark[1] < 0.001


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_mistakes_shows_the_images(tmp_path, channels):
    values = (40, 130, 220)
    images = [torch.full((channels, 9 + place, 13), value, dtype=torch.uint8) for place, value in enumerate(values)]
    predictions = [sure(0, 1, 0.6), sure(2, 3, 0.8), sure(1, 0, 0.6)]
    draw_mistakes(images, predictions, ["$a_$", "b", "c" * 99, "d"]).savefig(tmp_path / "mistakes.png")
    picture = opened(tmp_path / "mistakes.png")
    assert all((picture == value).all(-1).mean() > 0.03 for value in values)


def test_a_picture_of_no_mistakes_is_a_picture(tmp_path):
    draw_mistakes([], [], ["a", "b"]).savefig(tmp_path / "mistakes.png")
    assert (opened(tmp_path / "mistakes.png") < 100).any()


def test_images_without_predictions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 images have 0 predictions: give one for each image"):
        draw_mistakes([torch.zeros(1, 2, 2, dtype=torch.uint8)], [], ["a"]).savefig(tmp_path / "mistakes.png")
