"""Finding plugins: isolation of broken ones, duplicates, options from signatures."""

import pytest

from cl_core.errors import ConfigError, PluginError
from cl_core.registry import load_registry

LOSS = """
from pydantic import PositiveFloat
from typing import Annotated, Literal
from pydantic import Field
from cl_core import hookimpl

class Loss:
    \"\"\"A loss of a stranger.\"\"\"
    def __init__(self, temperature: PositiveFloat = 0.5, power: Annotated[int, Field(ge=1, le=3)] = 2,
                 kind: Literal["a", "b"] = "a"):
        self.temperature, self.power, self.kind = temperature, power, kind
    def __call__(self, z_a, z_b):
        return (z_a - z_b).square().mean() * self.temperature

@hookimpl
def register_losses():
    return {"acme_loss": Loss}
"""


def test_an_installed_plugin_is_found_with_its_provider(install):
    install("acme", "acme-losses", LOSS)
    entry = load_registry().get("loss", "acme_loss")
    assert (entry.plugin, entry.provider, entry.version) == ("acme-losses", "acme", "1.0")
    assert entry.summary == "A loss of a stranger."


def test_the_built_ins_register_through_entry_points_like_anybody():
    providers = {entry.provider for entry in load_registry().entries("method")}
    assert providers == {"contrast"}
    assert load_registry(block=["contrast-methods"]).entries("method") == []


def test_typed_keywords_are_the_options_and_are_checked_strictly(install):
    install("acme", "acme-losses", LOSS)
    registry = load_registry()
    assert registry.build("loss", "acme_loss", {"temperature": 1}).temperature == 1
    with pytest.raises(ConfigError, match="unknown option 'temprature' - did you mean 'temperature'"):
        registry.build("loss", "acme_loss", {"temprature": 1})
    with pytest.raises(ConfigError, match=r"temperature should be greater than 0, got -1"):
        registry.build("loss", "acme_loss", {"temperature": -1})
    with pytest.raises(ConfigError, match=r"power should be less than or equal to 3, got 4"):
        registry.build("loss", "acme_loss", {"power": 4})
    with pytest.raises(ConfigError, match=r"temperature should be a valid number, got '0.5'"):
        registry.build("loss", "acme_loss", {"temperature": "0.5"})
    with pytest.raises(ConfigError, match=r"kind should be 'a' or 'b', got 'c'"):
        registry.build("loss", "acme_loss", {"kind": "c"})


def test_an_unknown_name_offers_the_nearest_and_the_list():
    with pytest.raises(ConfigError, match=r"no method is called 'simclrr' - did you mean 'simclr'\?; .*byol"):
        load_registry().get("method", "simclrr")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("1/0", "ZeroDivisionError"),
        ("from cl_core import hookimpl\n@hookimpl\ndef register_loses(): return {}", "unknown hook 'register_loses'"),
        ("from cl_core import hookimpl\n@hookimpl\ndef on_log(stp): pass", "PluginValidationError"),
        ("from cl_core import hookimpl\n@hookimpl\ndef register_losses(): raise ValueError('no')", "ValueError: no"),
    ],
)
def test_a_broken_plugin_costs_only_itself_and_is_remembered(install, source, reason):
    install("broken", "broken-plugin", source)
    install("acme", "acme-losses", LOSS)
    registry = load_registry()
    assert registry.get("loss", "acme_loss")
    assert [broken.plugin for broken in registry.broken] == ["broken-plugin"]
    assert reason in registry.broken[0].error
    with pytest.raises(ConfigError, match=r"plugin 'broken-plugin' .broken. did not load"):
        registry.get("loss", "what_the_broken_plugin_would_have_given")


def test_two_distributions_with_one_plugin_name_are_an_error_naming_both(install):
    install("acme", "losses", LOSS)
    install("rival", "losses", LOSS.replace("acme_loss", "rival_loss"))
    with pytest.raises(PluginError, match=r"(acme|rival) 1.0 and (acme|rival) 1.0 both install .* 'losses'"):
        load_registry()


def test_two_parts_of_one_name_are_an_error_naming_both_until_one_is_blocked(install):
    install("acme", "acme-losses", LOSS.replace("acme_loss", "nt_xent"))
    with pytest.raises(PluginError, match=r"'nt_xent' comes from plugin 'acme-losses' .* from plugin 'contrast"):
        load_registry()
    assert load_registry(block=["acme-losses"]).get("loss", "nt_xent").provider == "contrast"


def test_a_part_whose_module_cannot_be_imported_is_an_error_only_when_used(install):
    source = "from cl_core import hookimpl\n@hookimpl\ndef register_losses(): return {'late': 'no_such:Loss'}"
    install("acme", "acme-losses", source)
    registry = load_registry()
    assert registry.broken == []
    with pytest.raises(PluginError, match=r"'late' of plugin 'acme-losses' .* from no_such:Loss"):
        registry.build("loss", "late", {})
