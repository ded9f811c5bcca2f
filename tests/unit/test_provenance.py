"""The digest of a stage's code: what counts, and what does not."""

import shutil

import pytest

from mallowspo import provenance
from mallowspo.provenance import STAGE_MODULES, code_digest, environment


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose files a test may edit."""
    copy = tmp_path / "mallowspo"
    shutil.copytree(provenance.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", copy)

    def forget():
        for remembered in (code_digest, provenance._imported_modules, provenance._bare_code):
            remembered.cache_clear()

    def digests():
        forget()
        return {stage: code_digest(stage) for stage in STAGE_MODULES}

    yield copy, digests
    forget()


def changed(digests, file, edit):
    before = digests()
    file.write_text(edit(file.read_text()))
    after = digests()
    return {stage for stage in before if before[stage] != after[stage]}


def test_comments_docstrings_and_layout_do_not_count(package):
    copy, digests = package
    file = copy / "objectives/links.py"
    edited = ('"""Link functions', '"""All link functions')
    assert changed(digests, file, lambda text: "# a remark\n\n" + text.replace(*edited)) == set()


def test_a_loss_touches_training_alone(package):
    copy, digests = package
    file = copy / "objectives/links.py"
    assert changed(digests, file, lambda text: text.replace("softplus(-weight * s)", "softplus(-weight * s * 2)")) == {
        "train",
        "signals",
    }


def test_the_kernel_touches_all_that_score(package):
    copy, digests = package
    file = copy / "head_chunks.py"
    assert changed(digests, file, lambda text: text.replace("CHUNK = 128", "CHUNK = 64")) == {
        "reference", "other-pairs", "dispersion", "train", "score", "signals", "alpaca", "judge",
    }  # fmt: skip


def test_tracking_and_the_reports_template_touch_themselves_alone(package):
    copy, digests = package
    assert changed(digests, copy / "tracking/store.py", lambda text: text + "\nNEW = 1\n") == {"track"}
    page = {"report.html.jinja": {"report"}, "explore.js": {"report"}, "page.css": {"report", "paper"}}
    for name, stages in page.items():
        assert changed(digests, copy / "report" / name, lambda text: text + " ") == stages
    assert changed(digests, copy / "paper/paper.html.jinja", lambda text: text + " ") == {"paper"}


def test_environment_names_versions():
    found = environment("cpu")
    assert found["versions"]["torch"].startswith("2.")
    assert found["device"] == "cpu" and found["gpu"] is None
    assert set(found) == {"python", "platform", "processor", "threads", "device", "gpu", "git_commit", "versions"}
