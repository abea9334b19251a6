"""Resolved files: what changes them is exactly what must rerun a stage."""

import json

from cl_core.provenance import Sources
from cl_core.resolve import PER_EXPERIMENT, RESOLVED, RUN_LIST, write_resolved

HELPER = "SCALE = 2.0\n"
LOSS = """
import acme_helper
from cl_core import hookimpl

class Loss:
    \"\"\"A loss with a helper.\"\"\"
    def __call__(self, z_a, z_b):
        return (z_a - z_b).square().mean() * acme_helper.SCALE

@hookimpl
def register_losses():
    return {"acme_loss": Loss}
"""


def changed(folder):
    return {str(path.relative_to(RESOLVED)) for path in write_resolved(folder) if path != RUN_LIST}


def stages(experiment, *names):
    return {f"{experiment}/{name}.json" for name in names}


def test_every_stage_of_every_experiment_gets_a_file_and_the_second_time_nothing_changes(project):
    folder = project()
    assert changed(folder) == {"ingest.json", "report.json", *stages("tiny", *PER_EXPERIMENT)}
    assert changed(folder) == set()


def test_the_temperature_reruns_pretraining_and_what_follows_but_not_views(project):
    folder = project()
    changed(folder)
    path = folder / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("temperature: 0.5", "temperature: 0.2"))
    assert changed(folder) == stages("tiny", "pretrain", "embed", "linear_eval", "finetune", "diagnose")


def test_a_description_reruns_only_the_report(project):
    folder = project()
    changed(folder)
    path = folder / "experiments" / "tiny.yaml"
    path.write_text(path.read_text() + "description: the first try\n")
    assert changed(folder) == {"report.json"}


def test_the_fraction_of_labels_reruns_only_fine_tuning(project):
    folder = project()
    changed(folder)
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("fractions: [0.1, 1.0]", "fractions: [0.2, 1.0]"))
    assert changed(folder) == stages("tiny", "finetune")


def distilled(project):
    folder = project({"experiments/b.yaml": "extends: tiny\ndistil: {budget: 0.1}\n"})
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("[tiny]", "[tiny, b]").replace("distil: []", "distil: [b]"))
    return folder


def test_only_experiments_that_are_distilled_have_that_stage(project):
    folder = distilled(project)
    assert changed(folder) >= stages("b", "distil")
    assert not (folder / RESOLVED / "tiny" / "distil.json").exists()
    content = json.loads((folder / RESOLVED / "b" / "distil.json").read_text())
    assert content["config"]["student"] == content["config"]["encoder"]
    params, experiment = folder / "params.yaml", folder / "experiments" / "b.yaml"
    params.write_text(params.read_text().replace("distil: [b]", "distil: []"))
    experiment.write_text("extends: tiny\n")
    assert changed(folder) == {"report.json", *stages("b", "distil")}


def test_a_setting_or_the_student_of_distillation_reruns_only_that(project):
    folder = distilled(project)
    changed(folder)
    path = folder / "experiments" / "b.yaml"
    path.write_text("extends: tiny\ndistil: {budget: 0.1, temperature: 2}\n")
    assert changed(folder) == stages("b", "distil")
    path.write_text("extends: tiny\ndistil: {budget: 0.1, temperature: 2, encoder: {name: vit, width: 32}}\n")
    assert changed(folder) == stages("b", "distil")
    content = json.loads((folder / RESOLVED / "b" / "distil.json").read_text())
    assert {part["name"] for part in content["parts"] if part["kind"] == "encoder"} == {"resnet8", "vit"}


def test_files_of_an_experiment_that_left_are_removed(project):
    folder = project({"experiments/b.yaml": "extends: tiny\n"})
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("[tiny]", "[tiny, b]"))
    changed(folder)
    params.write_text(params.read_text().replace("[tiny, b]", "[tiny]"))
    assert changed(folder) == {"report.json", *stages("b", *PER_EXPERIMENT)}
    assert not (folder / RESOLVED / "b").exists()


def test_editing_a_plugin_or_its_helper_reruns_exactly_the_experiments_that_use_it(project, install):
    module = install("acme", "losses", LOSS)
    (module.parent / "acme_helper.py").write_text(HELPER)
    (module.parent / "acme-1.0.dist-info" / "top_level.txt").write_text("acme_losses\nacme_helper\n")
    folder = project({"experiments/b.yaml": "extends: tiny\nloss: {name: acme_loss}\n"})
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("[tiny]", "[tiny, b]"))
    changed(folder)
    (module.parent / "acme_helper.py").write_text(HELPER.replace("2.0", "3.0"))
    assert changed(folder) == stages("b", "pretrain", "embed", "linear_eval", "finetune", "diagnose")
    module.write_text(module.read_text().replace("A loss", "The loss"))
    assert changed(folder) == stages("b", "pretrain", "embed", "linear_eval", "finetune", "diagnose")


def test_a_resolved_file_names_provider_version_and_source_of_each_part(project):
    folder = project()
    changed(folder)
    content = json.loads((folder / RESOLVED / "tiny" / "pretrain.json").read_text())
    parts = {(part["kind"], part["name"]): part for part in content["parts"]}
    loss = parts["loss", "nt_xent"]
    assert loss["provider"] == "contrast"
    assert len(loss["source"]) == 64
    assert {"torch", "torchvision", "timm", "source"} <= set(content["engine"])
    assert str(folder) not in json.dumps(content)


def test_one_method_is_not_hashed_into_another_and_trainer_and_report_only_into_their_stages():
    simclr = Sources().imported_modules(["plugins.methods.simclr"], {"plugins"})
    assert "plugins.methods.byol" not in simclr
    jigsaw = Sources().imported_modules(["plugins.methods.jigsaw"], {"plugins"})
    assert not {"plugins.methods.rotation", "plugins.methods.context_prediction"} & jigsaw
    pretrain = Sources().imported_modules(["cl_core.training.trainer"], {"cl_core"})
    assert "cl_core.training.trainer" in pretrain
    assert not {name for name in pretrain if name.startswith(("cl_core.report", "cl_core.evaluation.linear"))}
    for module in ("cl_core.data.ingest", "cl_core.data.views", "cl_core.evaluation.features", "cl_core.report.page"):
        assert "cl_core.training.trainer" not in Sources().imported_modules([module], {"cl_core"})


def test_the_digest_follows_the_source_of_imported_modules(tmp_path, monkeypatch):
    package = tmp_path / "digested"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from digested import b\n    return b.X\n")
    (package / "b.py").write_text("X = 1\n")
    (package / "c.py").write_text("Y = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = Sources().source_digest(["digested.a"], {"digested"})
    (package / "c.py").write_text("Y = 2\n")
    assert Sources().source_digest(["digested.a"], {"digested"}) == before
    (package / "b.py").write_text("X = 2\n")
    assert Sources().source_digest(["digested.a"], {"digested"}) != before
