"""Names of splits: those that folders and shards really bear, and what is no split."""

import pytest

from pqvae.data.sample import Sample
from pqvae.data.splits import carve, split_folders, split_of, split_shards
from pqvae.errors import UserError


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train Train TRAINING train2017 train_images trainset Train_Set images-train", "train"),
        ("trainval training_data trainImages train_224x224", "train"),
        ("val valid validation Valid val2017 dev devel development validation_images", "val"),
        ("test Testing test2017 test_images eval evaluation test-set Test_Images_2", "test"),
        ("trained tested pretrain valley devices latest contest steam_train tr daisy 2017", None),
        ("train_test test_tube", None),  # two splits, or a word that may belong to a class
    ],
)
def test_a_folder_is_a_split_where_its_name_says_that_and_nothing_else(
    names: str, split: str | None
) -> None:
    for name in names.split():
        assert split_of(name) == split, name


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("Training Testing", "train test"),
        ("train dev eval", "train val test"),
        ("train val eval", "train val test"),
        ("train2017 val2017", "train val"),
        ("train validation test_public", "train val test"),
        ("seg_train seg_test", "train test"),
        ("DIV2K_train_HR DIV2K_valid_HR", "train val"),
        ("test", "test"),
        ("steam_train bullet_train bus", ""),
        ("steam_train", ""),
        ("daisy rose tulip", ""),
        ("", ""),
    ],
)
def test_folders_side_by_side_are_all_splits_or_none(names: str, splits: str) -> None:
    expected = dict(zip(names.split(), splits.split(), strict=bool(splits)))
    assert split_folders(names.split(), "data") == (expected if splits else {})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("bus car train", r"data: train stands beside bus; if all are classes, put them into a fo"),
        ("test cat", r"data: test stands beside cat; .* if test is a split, move cat out$"),
        ("train test extra", r"test stands beside extra"),
        ("seg_train seg_test seg_pred", r"seg_test stands beside seg_pred"),
        ("train2014 train2017", r"both train2014 and train2017 are train; join them"),
        ("trainA trainB testA testB", r"both testA and testB are test"),
        ("train testing evaluation", r"evaluation could be val or test, as testing is there"),
        ("train test eval", r"eval could be val or test, as test is there; rename it"),
    ],
)
def test_folders_that_may_be_read_in_two_ways_are_refused(names: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        split_folders(names.split(), "data")
    assert len(str(caught.value)) < 200


def test_a_key_of_any_bytes_is_carved() -> None:
    samples = [Sample(f"\udcff{index}", None, b"", 0, 0) for index in range(99)]
    carved = carve({"train": samples})
    assert sum(map(len, carved.values())) == 99
    assert min(map(len, carved.values())) > 1


def test_shards_name_their_split_with_words_of_their_own() -> None:
    names = ["my-training-000.tar", "my-dev_0.tar", "eval-000.tar", "Train2.tar"]
    assert list(split_shards(names, "data").values()) == ["train", "val", "test", "train"]
    assert set(split_shards(["a.tar", "trained-0.tar", "device.tar"], "data").values()) == {None}
    with pytest.raises(UserError, match=r"more.tar does not name its split, as other shards do"):
        split_shards(["train-0.tar", "more.tar"], "data")
    with pytest.raises(UserError, match=r"eval-0.tar could be val or test, as test-0.tar is there"):
        split_shards(["train-0.tar", "test-0.tar", "eval-0.tar"], "data")
