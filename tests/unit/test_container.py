"""The container recipe and the profile say what the rest of the repository says."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "workflow/container.def").read_text()


def test_the_recipe_has_the_pinned_versions():
    constraints = (ROOT / "constraints.txt").read_text()
    (torch,) = re.findall(r"^torch==(.+)$", constraints, re.MULTILINE)
    assert f"pip install --no-cache-dir torch=={torch}" in RECIPE
    assert f"pip install --quiet torch=={torch}" in (ROOT / "Makefile").read_text()
    assert "--constraint constraints.txt" in RECIPE


def test_what_the_recipe_copies_is_there_and_enough_to_install():
    copied = re.findall(r"^    (\S+) /opt/mallowspo/(\S+)$", RECIPE, re.MULTILINE)
    assert all(source == target and (ROOT / source).exists() for source, target in copied)
    project = (ROOT / "pyproject.toml").read_text()
    named = {re.search(r'^readme = "(.+)"$', project, re.MULTILINE)[1], "LICENSE", "pyproject.toml", "constraints.txt"}
    assert named | {"mallowspo"} == {source for source, _ in copied}
    for extra in re.search(r"'\.\[(.+)\]'", RECIPE)[1].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_the_profile_names_no_site_and_every_setting_of_one():
    text = (ROOT / "workflow/profiles/slurm/config.yaml").read_text()
    assert set(yaml.safe_load(text)["default-resources"]) == {"mem_mb", "runtime"}
    for setting in ("slurm_partition", "slurm_account", "gpu_model", "slurm_extra", "tmpdir", "software-deployment"):
        assert f"# {setting}" in text, setting
    with_site = re.sub(r"^(  )?# (?=[a-z_-]+: )", r"\1", text, flags=re.MULTILINE)
    site = yaml.safe_load(with_site)
    assert site["default-resources"]["gpu_model"] == "a100"
    assert site["software-deployment-method"] == "apptainer"
