"""Settings: flags, YAML, defaults in the help, unknown names; and run directories."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from judge_pipeline.common.config import Command, Config, main, resolve
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.run_dir import prepare_run, read_run_yaml


class Judge(Config):
    base_url: list[str] = Field(default=[], description="where the judge listens")
    temperature: float = Field(default=0.25, description="heat")


class Settings(Config):
    prompts: Path = Field(description="the prompts", json_schema_extra={"positional": True})
    output: Path | None = Field(default=None, description="a folder")
    judge: Judge = Judge()
    weights: dict[str, float] = Field(default={"faithfulness": 1.0}, description="share of each, 100% in sum")
    mode: Literal["dense", "bm25"] = "dense"
    shuffle: bool = True
    limit: int | None = None
    workers: int = Field(default=1, json_schema_extra={"identity": False})


def run(*argv):
    """Exit code, and the settings the command got."""
    got = []
    command = Command("go", "do it", Settings, lambda config: got.append(config), "tool go prompts.jsonl")
    return main("tool", [command], [*argv]), (got[0] if got else None)


def test_flags_of_every_kind():
    code, got = run("go", "p.jsonl", "--judge.base-url", "http://a", "http://b", "--judge.temperature", "0.5",
                    "--weights", "a=2,b=0.5", "--mode", "bm25", "--no-shuffle", "--limit", "3")  # fmt: skip
    assert code == 0
    assert got == Settings(prompts=Path("p.jsonl"), judge=Judge(base_url=["http://a", "http://b"], temperature=0.5),
                           weights={"a": 2, "b": 0.5}, mode="bm25", shuffle=False, limit=3)  # fmt: skip


def test_flags_may_be_spelled_as_in_yaml():
    assert run("go", "p", "--judge.base_url=http://a_b")[1].judge.base_url == ["http://a_b"]


@pytest.mark.parametrize(
    "text", ["prompts: p\njudge:\n  temperature: 0.9\n", "prompts: p\njudge.temperature: 0.9\n"]
)
def test_yaml_gives_settings_and_flags_beat_it(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert run("go", "--config", str(file))[1].judge.temperature == 0.9
    assert run("go", "--config", str(file), "--judge.temperature", "0.1")[1].judge.temperature == 0.1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["go", "p", "--otput", "x"], ["--otput", "did you mean '--output'"]),
        (["go"], ["PROMPTS: is missing"]),
        (["go", "p", "--limit", "many"], ["--limit", "integer"]),
        (["go", "p", "--mode", "sparse"], ["--mode", "one of dense, bm25"]),
        (["go", "p", "--weights", "faithfulness"], ["--weights", "name=value"]),
        (["go", "--config", "none.yaml"], ["none.yaml is not there"]),
        (["go", "--config", "/"], ["could not read /"]),
    ],
)
def test_mistakes_are_named(capsys, argv, words):
    assert run(*argv)[0] == 2
    text = capsys.readouterr().err
    assert all(word in text for word in words), text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("judge:\n  temprature: 1\n", ["judge.temprature", "did you mean 'judge.temperature'"]),
        ("- a\n", ["list"]),
        ("a: [\n", ["not YAML"]),
    ],
)
def test_mistakes_in_yaml_are_named(tmp_path, capsys, text, words):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert run("go", "p", "--config", str(file))[0] == 2
    out = capsys.readouterr().err
    assert all(word in out for word in words), out


def test_help_states_every_default_and_an_example(capsys):
    with pytest.raises(SystemExit):
        run("go", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for piece in ("(default: 0.25)", "(default: faithfulness=1.0)", "(required)", "(default: none)", "100% in sum",
                  "tool go prompts.jsonl", "--no-shuffle"):  # fmt: skip
        assert piece in text
    assert text.count("(default: ") >= 8


def test_interruption_and_full_disk_have_their_own_endings(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    def full(_):
        raise OSError(28, "No space left on device", "/data/x")

    def broken(_):
        raise ValueError("ours")

    def code(function):
        return main("tool", [Command("go", "", Settings, function, "")], ["go", "p"])

    assert code(interrupted) == 130
    assert code(full) == 2
    text = capsys.readouterr().err
    assert "what is finished is kept" in text
    assert "disk is full: could not write /data/x" in text
    with pytest.raises(ValueError, match="ours"):
        code(broken)


@pytest.mark.parametrize(
    "save",
    ["import torch; torch.save(torch.zeros(9999), sys.argv[1])",
     "import torch, safetensors.torch; safetensors.torch.save_file({'a': torch.zeros(9999)}, sys.argv[1])"],
)  # fmt: skip
def test_weights_that_do_not_fit_the_disk_are_a_message(tmp_path, save):
    script = (
        "import resource, sys; from judge_pipeline.common.config import Command, Config, main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "def go(_):\n"
        f"    {save}\n"
        "sys.exit(main('tool', [Command('go', '', Config, go, '')], ['go']))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "w")], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "could not" in done.stderr
    assert "Traceback" not in done.stderr


def test_same_configuration_resumes_and_another_is_refused(tmp_path):
    inputs = tmp_path / "p.jsonl"
    inputs.write_text("{}")
    config, output = Settings(prompts=inputs), tmp_path / "run"
    assert prepare_run(output, config, "go", inputs=[inputs]) is False
    (output / "labels.jsonl").write_text("old")
    assert prepare_run(output, config.model_copy(update={"workers": 8}), "go", inputs=[inputs]) is True
    other = config.model_copy(update={"mode": "bm25"})
    with pytest.raises(UserError, match="mode: 'dense' there, 'bm25' now"):
        prepare_run(output, other, "go", inputs=[inputs])
    assert prepare_run(output, other, "go", "resume", [inputs]) is True
    inputs.write_text("{} {}")
    with pytest.raises(UserError, match=r"p\.jsonl has other content now"):
        prepare_run(output, other, "go", inputs=[inputs])
    assert prepare_run(output, config, "go", "replace", [inputs]) is False
    assert not (output / "labels.jsonl").exists()


def test_a_run_that_left_nothing_is_no_obstacle_to_another(tmp_path):
    config, output = Settings(prompts=Path("p")), tmp_path / "run"
    other = config.model_copy(update={"mode": "bm25"})
    prepare_run(output, config, "go")
    (output / "labels.jsonl").touch()
    (output / "calls.sqlite").write_text("no calls in it")
    assert prepare_run(output, other, "go", idle=["calls.sqlite"]) is False
    assert read_run_yaml(output)["config"]["mode"] == "bm25"
    with pytest.raises(UserError, match="another configuration"):
        prepare_run(output, config, "go")


def test_a_file_in_the_making_is_work(tmp_path):
    config, output = Settings(prompts=Path("p")), tmp_path / "scored.jsonl"
    run_file = tmp_path / "scored.jsonl.run.yaml"
    other = config.model_copy(update={"mode": "bm25"})
    prepare_run(output, config, "go", run_file=run_file)
    prepare_run(output, other, "go", run_file=run_file)
    (tmp_path / "scored.jsonl.part").write_text("{}")
    with pytest.raises(UserError, match="another configuration"):
        prepare_run(output, config, "go", run_file=run_file)


def test_inputs_are_never_the_price_of_an_output(tmp_path):
    inputs, config = tmp_path / "run" / "p.jsonl", Settings(prompts=Path("p"))
    inputs.parent.mkdir()
    inputs.write_text("{}")
    prepare_run(inputs.parent, config, "go", "resume", [inputs])
    with pytest.raises(UserError, match="would delete the input"):
        prepare_run(inputs.parent, config, "go", "replace", [inputs])
    with pytest.raises(UserError, match="--output is the input"):
        prepare_run(inputs, config, "go", "replace", [inputs], run_file=tmp_path / "p.run.yaml")
    with pytest.raises(UserError, match="is a file"):
        prepare_run(inputs, config, "go", "replace")
    with pytest.raises(UserError, match="is a folder"):
        prepare_run(inputs.parent, config, "go", run_file=tmp_path / "run.run.yaml")
    assert inputs.read_text() == "{}"


def test_a_folder_that_is_no_run_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="not a run of ours"):
        prepare_run(tmp_path, Settings(prompts=Path("p")), "go", "replace")
    assert (tmp_path / "thesis.tex").read_text() == "dear"


def test_run_yaml_is_enough_to_repeat_the_run(tmp_path):
    config = Settings(prompts=Path("p.jsonl"), judge=Judge(temperature=0.7))
    prepare_run(tmp_path / "run", config, "go")
    run_yaml = read_run_yaml(tmp_path / "run")
    again = Settings.model_validate(run_yaml["config"])
    assert again.judge == config.judge
    assert again.prompts == Path("p.jsonl").absolute()
    assert {"torch", "transformers", "python"} <= set(run_yaml["versions"])


def test_a_run_yaml_is_a_configuration_file(tmp_path, capsys):
    config = Settings(prompts=Path("p.jsonl"), judge=Judge(temperature=0.7), weights={"a": 2.0})
    prepare_run(tmp_path / "run", config, "tool go")
    file = str(tmp_path / "run" / "run.yaml")
    assert run("go", "--config", file)[1] == config.model_copy(update={"prompts": Path("p.jsonl").absolute()})
    assert run("go", "--config", file, "--judge.temperature", "0.1")[1].judge.temperature == 0.1
    prepare_run(tmp_path / "other", config, "tool stop")
    assert run("go", "--config", str(tmp_path / "other" / "run.yaml"))[0] == 2
    assert "describes a run of `tool stop`, not of `tool go`" in capsys.readouterr().err


def test_a_run_is_not_repeated_with_its_leave_to_replace(tmp_path):
    class Replacing(Config):
        existing: Literal["refuse", "replace"] = "refuse"

    prepare_run(tmp_path / "run", Replacing(existing="replace"), "tool go")
    assert resolve(Replacing, {}, tmp_path / "run" / "run.yaml", "tool go") == Replacing()


def test_help_lists_all_choices_of_a_union(capsys):
    class Choosing(Config):
        loss: Literal["huber", "mse"] | Literal["auto"] | None = "auto"

    assert main("tool", [Command("go", "", Choosing, lambda _: None, "")], ["go", "--loss", "x"]) == 2
    assert capsys.readouterr().err.count("--loss: Input should be one of huber, mse, auto\n") == 1
    with pytest.raises(SystemExit):
        main("tool", [Command("go", "", Choosing, lambda _: None, "")], ["go", "--help"])
    assert "--loss {huber,mse,auto}" in capsys.readouterr().out


def test_a_mapping_that_lost_a_key_is_another_configuration(tmp_path):
    config, output = Settings(prompts=Path("p"), weights={"a": 1.0, "b": 2.0}), tmp_path / "run"
    prepare_run(output, config, "go")
    (output / "labels.jsonl").write_text("old")
    with pytest.raises(UserError, match=r"weights\.b: 2\.0 there, None now"):
        prepare_run(output, config.model_copy(update={"weights": {"a": 1.0}}), "go")
