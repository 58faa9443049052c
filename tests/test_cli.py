"""The command line, as it is typed."""

import keras
import pytest

from keras_flax_bridge import cli


def test_plan_counts_without_allocating(capsys, tmp_path):
    assert cli.main(["plan", "examples.large_models:seventy_billion", "--mesh", "8x4", "--ema"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(number in told for number in ("275.907", "551.813", "1103.626", "34.488", "8.622", "17.244"))
    assert "1103.6 GB, 1104 s at 1.0 GB/s" in told
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]).save(tmp_path / "small.keras")
    assert cli.main(["plan", str(tmp_path / "small.keras"), "--optimizer", "momentum", "--mesh", "2"]) == 0


WRONG = {
    "no such function": (["examples.large_models:nine"], "MODEL: got 'examples.large_models:nine'"),
    "no such module": (["nowhere:model"], "MODEL: got 'nowhere'"),
    "no mesh": (["examples.large_models:seven_billion", "--mesh", "8x"], "--mesh: got '8x'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_use_is_one_line_and_code_2(capsys, wrong):
    arguments, words = WRONG[wrong]
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_an_unknown_command_is_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["fly"])
    assert ended.value.code == 2
