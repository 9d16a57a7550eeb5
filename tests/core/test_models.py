"""The model files, the validation of a request against them, and the equivalent JSON Schema."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
from darkroom.catalogue.models import RESERVED_NAMES, Catalogue, Model, Parameter, ParameterType, schema, validate
from darkroom.catalogue.parameters import MAX_FAULTS, json_schema, read_input
from darkroom.errors import InvalidInput, SettingError, UnknownModel
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

SHIPPED = Catalogue.load()
FLUX = SHIPPED.get("flux")
SD = SHIPPED.get("sd")
BOTH = pytest.mark.parametrize("model", [FLUX, SD], ids=["flux", "sd"])

PLAIN = """
name = "plain"
title = "Plain"
description = "One parameter of each type."
engine = "still"
pipeline = "Still"
source = "somewhere/plain"
dtype = "float32"
pool = "local"
"""

WIDTH = """
[parameters.width]
type = "integer"
description = "Width."
default = 64
minimum = 64
maximum = 128
multiple_of = 8
"""


def faults_of(model: Model, raw: Mapping[str, object]) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        validate(model, raw)
    return {fault.field: fault.detail for fault in caught.value.fields}


def folder_of(tmp_path: Path, /, **files: str) -> Path:
    """A folder with one model file per keyword."""
    tmp_path.mkdir(exist_ok=True)
    for stem, text in files.items():
        (tmp_path / f"{stem}.toml").write_text(text, encoding="utf-8")
    return tmp_path


def model_from(tmp_path: Path, text: str, name: str = "plain") -> Model:
    return Catalogue.load([folder_of(tmp_path, model=text)]).get(name)


# What is shipped


def test_flux_and_sd_are_shipped_and_flux_is_the_default() -> None:
    assert [model.name for model in SHIPPED] == ["flux", "sd"]
    assert len(SHIPPED) == 2
    assert SHIPPED.default is FLUX


@BOTH
def test_a_shipped_model_names_its_real_source_and_promises_no_stand_in(model: Model) -> None:
    assert (model.engine, model.pool, model.served) == ("diffusers", model.name, model.name)
    assert model.source in {"black-forest-labs/FLUX.1-schnell", "stable-diffusion-v1-5/stable-diffusion-v1-5"}


@BOTH
def test_without_anything_the_defaults_make_a_complete_input(model: Model) -> None:
    full = validate(model, {})
    assert full["prompt"]
    assert set(model.parameters) - set(full) == {"seed", "scheduler"}, "left to the ledger and to the weights"


@BOTH
@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(
            {"prompt": "a beautiful sunset over mountains", "width": 832, "height": 1216}, id="width and height"
        ),
        pytest.param({"prompt": "x", "size": "832x1216"}, id="size"),
        pytest.param({"size": "832x1216", "width": 832, "height": 1216}, id="size that agrees"),
        pytest.param({"size": "832x1216", "height": 1216}, id="size and one side"),
    ],
)
def test_each_form_of_a_size_is_accepted(model: Model, raw: dict[str, object]) -> None:
    full = validate(model, raw)
    assert (full["width"], full["height"]) == (832, 1216)
    assert "size" not in full


@BOTH
@pytest.mark.parametrize("seed", [0, 1, 2**53 - 1])
def test_a_seed_is_kept_exactly(model: Model, seed: int) -> None:
    assert json.loads(json.dumps(validate(model, {"seed": seed})))["seed"] == seed


@BOTH
@pytest.mark.parametrize("raw", [{}, {"seed": None}], ids=["left out", "null"])
def test_a_seed_that_is_not_given_stays_absent(model: Model, raw: dict[str, object]) -> None:
    assert "seed" not in validate(model, raw)


@BOTH
def test_the_fields_of_existing_clients_are_accepted(model: Model) -> None:
    full = validate(model, {"enable_base64_output": True, "cache_threshold": 0})
    assert (full["enable_base64_output"], full["cache_threshold"]) == (True, 0.0)


def test_only_flux_has_a_cache() -> None:
    assert validate(FLUX, {"cache_threshold": 0.2})["cache_threshold"] == 0.2
    assert faults_of(SD, {"cache_threshold": 0.2}) == {"cache_threshold": "must be at most 0"}


def test_only_sd_has_a_safety_checker() -> None:
    assert validate(SD, {"safety_checker": False})["safety_checker"] is False
    assert "is not a parameter of this model" in faults_of(FLUX, {"safety_checker": False})["safety_checker"]


@pytest.mark.parametrize(
    ("model", "raw"),
    [
        pytest.param(FLUX, {"negative_prompt": "fog"}, id="flux, guidance off by default"),
        pytest.param(SD, {"negative_prompt": "fog", "guidance": 1}, id="sd, guidance put off"),
        pytest.param(SD, {"negative_prompt": "fog", "guidance": 0}, id="sd, guidance 0"),
    ],
)
def test_a_negative_prompt_that_would_be_ignored_is_refused(model: Model, raw: dict[str, object]) -> None:
    assert faults_of(model, raw) == {"negative_prompt": "has no effect unless guidance is above 1"}


@pytest.mark.parametrize(
    ("model", "raw"),
    [
        pytest.param(FLUX, {"negative_prompt": "fog", "guidance": 3}, id="flux with guidance"),
        pytest.param(FLUX, {"negative_prompt": ""}, id="flux, an empty one"),
        pytest.param(SD, {"negative_prompt": "fog"}, id="sd, guidance on by default"),
    ],
)
def test_a_negative_prompt_is_taken_with_guidance(model: Model, raw: dict[str, object]) -> None:
    assert validate(model, raw)["negative_prompt"] == raw["negative_prompt"]


def test_guidance_reaches_the_argument_that_each_pipeline_heeds() -> None:
    assert FLUX.parameters["guidance"].argument == "true_cfg_scale"
    assert SD.parameters["guidance"].argument == "guidance_scale"


def test_as_many_pixels_as_the_model_allows_are_taken() -> None:
    assert FLUX.max_pixels == 2048 * 1024
    assert validate(FLUX, {"size": "2048x1024"})["width"] == 2048


def test_an_integer_may_be_written_with_a_fraction_of_zero_or_an_exponent() -> None:
    """As JSON Schema 2020-12 defines integers."""
    raw = json.loads('{"steps": 42.0, "seed": 1e3, "width": 1.024e3}')
    found = validate(FLUX, raw)
    assert [(found[name], type(found[name])) for name in raw] == [(42, int), (1000, int), (1024, int)]


# What is refused


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        pytest.param({"prompt": ""}, "prompt", "must not be empty", id="empty prompt"),
        pytest.param({"prompt": None}, "prompt", "must be a string", id="null prompt"),
        pytest.param({"prompt": 7}, "prompt", "must be a string", id="number as prompt"),
        pytest.param({"prompt": ["x"]}, "prompt", "must be a string", id="array as prompt"),
        pytest.param({"prompt": "x" * 4001}, "prompt", "must have at most 4000 characters, not 4001", id="long prompt"),
        pytest.param({"prompt": "x" * 2**20}, "prompt", "must have at most 4000 characters", id="prompt of 1 MB"),
        pytest.param({"prompt": "a\x00b"}, "prompt", "must not contain control characters", id="NUL"),
        pytest.param({"prompt": "a\x1b[31m"}, "prompt", "must not contain control characters", id="escape"),
        pytest.param({"prompt": "a\x1f"}, "prompt", "must not contain control characters", id="last of C0"),
        pytest.param({"prompt": "a\x9b"}, "prompt", "must not contain control characters", id="C1 control"),
        pytest.param({"prompt": "a\ud800"}, "prompt", "contains a surrogate", id="lone surrogate"),
        pytest.param({"steps": 0}, "steps", "must be at least 1", id="below"),
        pytest.param({"steps": 51}, "steps", "must be at most 50", id="above"),
        pytest.param({"steps": 20.5}, "steps", "must be an integer", id="20.5 is no integer"),
        pytest.param({"seed": 1e300}, "seed", "must be at most 9007199254740991", id="huge integral float"),
        pytest.param({"steps": True}, "steps", "must be an integer", id="true is no integer"),
        pytest.param({"steps": "20"}, "steps", "must be an integer", id="text is no integer"),
        pytest.param({"width": 833}, "width", "must be a multiple of 16", id="no multiple"),
        pytest.param({"seed": -1}, "seed", "must be at least 0", id="negative seed"),
        pytest.param({"seed": 2**53}, "seed", "must be at most 9007199254740991", id="seed beyond exactness"),
        pytest.param({"seed": 10**400}, "seed", "must be at most 9007199254740991", id="huge seed"),
        pytest.param({"guidance": math.nan}, "guidance", "must be a finite number", id="NaN"),
        pytest.param({"guidance": -math.inf}, "guidance", "must be a finite number", id="infinity"),
        pytest.param({"guidance": 10**400}, "guidance", "must be a finite number", id="integer beyond floats"),
        pytest.param({"guidance": False}, "guidance", "must be a number", id="false is no number"),
        pytest.param({"guidance": 20.5}, "guidance", "must be at most 20", id="number above"),
        pytest.param({"images": 5}, "images", "must be at most 4", id="five images"),
        pytest.param({"scheduler": "ddim"}, "scheduler", "must be one of flow-match-euler", id="no choice"),
        pytest.param({"enable_base64_output": 1}, "enable_base64_output", "must be true or false", id="1 is not true"),
        pytest.param({"size": "832"}, "size", "must be written as width x height", id="size with one side"),
        pytest.param({"size": "0832x1216"}, "size", "must be written as width x height", id="size with a zero"),
        pytest.param({"size": "832x1216\n"}, "size", "must be written as width x height", id="size with a line end"),
        pytest.param(
            {"size": "832x\u0661\u0662"}, "size", "must be written as width x height", id="size in other digits"
        ),
        pytest.param({"size": None}, "size", "must be written as width x height", id="null size"),
        pytest.param({"size": [832, 1216]}, "size", "must be written as width x height", id="size as an array"),
        pytest.param({"size": "832x8"}, "size", "height must be at least 64", id="limits within size"),
        pytest.param({"size": "832x1216", "width": 512}, "size", "has width 832, but", id="size against width"),
        pytest.param({"size": "2048x2048"}, "size", "4194304 pixels; the limit is 2097152", id="pixels by size"),
        pytest.param({"width": 2048, "height": 2048}, "width", "4194304 pixels; the limit is", id="pixels by sides"),
        pytest.param({"height": 2048, "width": 1040}, "width", "the limit is 2097152", id="pixels, just above"),
        pytest.param({"stepps": 4}, "stepps", 'did you mean "steps"?', id="unknown, near"),
        pytest.param({"num_inference_steps": 4}, "num_inference_steps", 'it is called "steps" here', id="its argument"),
        pytest.param({"strength": 0.5}, "strength", "is not a parameter of this model", id="unknown"),
        pytest.param({"": 1}, "", "is not a parameter of this model", id="unknown and empty"),
    ],
)
def test_what_the_model_does_not_take_is_refused_by_name(raw: dict[str, object], field: str, reason: str) -> None:
    faults = faults_of(FLUX, raw)
    assert list(faults) == [field]
    assert reason in faults[field]


def test_all_faults_are_named_at_once() -> None:
    raw: dict[str, object] = {"prompt": "", "steps": 0, "stepps": 1, "size": "x", "guidance": "high"}
    assert set(faults_of(FLUX, raw)) == set(raw)


def test_lines_and_tabs_and_every_script_are_taken_in_a_prompt() -> None:
    prompt = "zwei Zeilen\r\n\t灯台 🌅 ψ\u2028"
    assert validate(FLUX, {"prompt": prompt})["prompt"] == prompt


def test_a_refusal_of_junk_stays_small_and_can_be_encoded() -> None:
    raw: dict[str, object] = {f"{n}\ud800" + "x" * 10_000: n for n in range(1000)}
    with pytest.raises(InvalidInput) as caught:
        validate(FLUX, raw)
    answer = json.dumps(caught.value.problem(), ensure_ascii=False).encode("utf-8")
    assert len(caught.value.fields) == MAX_FAULTS
    assert "and more" in caught.value.detail
    assert len(answer) < 20_000


def test_the_order_of_the_input_is_the_models() -> None:
    one = validate(FLUX, {"seed": 1, "prompt": "x", "steps": 2})
    other = validate(FLUX, {"steps": 2, "prompt": "x", "seed": 1})
    assert list(one) == list(other) == [name for name in FLUX.parameters if name != "scheduler"]


def test_numbers_come_out_as_numbers_and_integers_as_integers() -> None:
    full = validate(FLUX, {"guidance": 2, "steps": 2})
    assert (type(full["guidance"]), type(full["steps"])) == (float, int)


# The schema says the same

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["a", "b"]), st.integers(), max_size=2),
)
LIMITS = st.integers(min_value=-9, max_value=9)
ABOUT_THE_LIMITS: Mapping[ParameterType, st.SearchStrategy[object]] = {
    ParameterType.INTEGER: st.integers(min_value=-11, max_value=11),
    ParameterType.NUMBER: st.integers(min_value=-22, max_value=22).map(lambda half: half / 2),
    ParameterType.STRING: st.one_of(
        st.sampled_from(["red", "green"]), st.text(alphabet="abc\t\n\r\x08\x0b\x0c\x1f\x7f\x9f", max_size=6)
    ),
    ParameterType.BOOLEAN: st.booleans(),
}


@st.composite
def declarations(draw: st.DrawFn, name: str) -> Parameter:
    """A parameter as a model file could define it."""
    kind = draw(st.sampled_from(ParameterType))
    low, high = sorted((draw(LIMITS), draw(LIMITS)))
    possible: Mapping[ParameterType, Mapping[str, object]] = {
        ParameterType.INTEGER: {"minimum": low, "maximum": high, "multiple_of": draw(st.integers(2, 4))},
        ParameterType.NUMBER: {"minimum": low / 2, "maximum": high},
        ParameterType.STRING: {"min_length": draw(st.integers(1, 2)), "max_length": draw(st.integers(2, 4))},
        ParameterType.BOOLEAN: {},
    }
    limits = {key: value for key, value in possible[kind].items() if draw(st.booleans())}
    if kind is ParameterType.STRING and draw(st.booleans()):
        limits = {"choices": ("red", "green")}
    fields = {"name": name, "type": kind, "description": "Any.", "required": draw(st.booleans()), **limits}
    return Parameter(**fields)


@st.composite
def models_and_inputs(draw: st.DrawFn) -> tuple[dict[str, Parameter], dict[str, object]]:
    """Two parameters of any type, one that needs a level and the level; and an input that is often nearly valid."""
    floor = draw(LIMITS)
    usual = float(floor + draw(st.sampled_from([-1, 0, 1])))
    level = Parameter(name="level", type=ParameterType.NUMBER, description="A level.", default=usual)
    extra = Parameter(
        name="extra",
        type=ParameterType.STRING,
        description="Something that needs a level.",
        default="",
        needs_above={"level": floor},
    )
    declared = {"a": draw(declarations("a")), "b": draw(declarations("b")), "level": level, "extra": extra}
    near: dict[str, st.SearchStrategy[object]] = {
        "a": ABOUT_THE_LIMITS[declared["a"].type],
        "b": ABOUT_THE_LIMITS[declared["b"].type],
        "level": st.sampled_from([floor - 0.5, floor, floor + 0.5]),
        "extra": st.sampled_from(["", "something"]),
    }
    raw: dict[str, object] = draw(st.fixed_dictionaries({}, optional=near))
    if draw(st.booleans()):
        raw[draw(st.sampled_from(["a", "b", "level", "extra", "unknown"]))] = draw(ANYTHING)
    return declared, raw


def is_taken(parameters: Mapping[str, Parameter], raw: Mapping[str, object]) -> bool:
    try:
        read_input(parameters, raw)
    except InvalidInput:
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(models_and_inputs())
def test_the_schema_takes_what_is_taken_and_refuses_what_is_refused(
    case: tuple[dict[str, Parameter], dict[str, object]],
) -> None:
    parameters, raw = case
    described = json.loads(json.dumps(json_schema(parameters)))
    Draft202012Validator.check_schema(described)
    assert Draft202012Validator(described).is_valid(raw) == is_taken(parameters, raw)


def test_the_schema_and_the_check_refuse_the_same_characters() -> None:
    described = Draft202012Validator(schema(FLUX))
    prompts = [{"prompt": f"a{chr(code)}b"} for code in range(0x200)]
    refused = [raw for raw in prompts if not is_taken(FLUX.parameters, raw)]
    assert refused == [raw for raw in prompts if not described.is_valid(raw)]
    assert len(refused) == 32 - 3 + 1 + 32, "C0 but for tab and line ends, DEL, C1"


@pytest.mark.parametrize("length", [0, 1, 4000, 4001])
def test_the_schema_and_the_check_agree_on_length(length: int) -> None:
    raw = {"prompt": "🌅" * length}
    assert is_taken(FLUX.parameters, raw) == Draft202012Validator(schema(FLUX)).is_valid(raw) == (1 <= length <= 4000)


NEARLY_RIGHT: dict[str, st.SearchStrategy[object]] = {
    "prompt": st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40),
    "negative_prompt": st.sampled_from(["", "fog"]),
    "width": st.sampled_from([56, 64, 512, 832, 1216, 1536, 2048, 2064]),
    "height": st.sampled_from([56, 64, 512, 832, 1216, 1536, 2048, 2064]),
    "size": st.sampled_from(["832x1216", "64x64", "8x8", "2048x2048", "x"]),
    "steps": st.integers(0, 51),
    "guidance": st.floats(-1, 31),
    "seed": st.one_of(st.none(), st.integers(-1, 2**53)),
    "images": st.integers(0, 5),
    "scheduler": st.sampled_from([None, "flow-match-euler", "ddim", "magic"]),
    "cache_threshold": st.floats(-0.1, 1.1),
    "enable_base64_output": st.booleans(),
}


@BOTH
@settings(max_examples=200, deadline=None)
@given(raw=st.fixed_dictionaries({}, optional=NEARLY_RIGHT))
@example(raw={"size": "832x1216", "seed": 2**53 - 1})
def test_a_shipped_models_schema_never_refuses_what_is_taken(model: Model, raw: dict[str, object]) -> None:
    described = Draft202012Validator(schema(model))
    if is_taken(model.parameters, raw):
        assert described.is_valid(raw)
    if "size" not in raw and not described.is_valid(raw):
        assert not is_taken(model.parameters, raw)


@BOTH
@settings(max_examples=200, deadline=None)
@given(raw=st.fixed_dictionaries({}, optional=NEARLY_RIGHT))
def test_a_complete_input_is_taken_again_unchanged(model: Model, raw: dict[str, object]) -> None:
    try:
        full = validate(model, raw)
    except InvalidInput:
        return
    again = validate(model, json.loads(json.dumps(full)))
    assert (again, list(again)) == (full, list(full))


@BOTH
def test_the_schema_names_the_default_and_the_limits_of_each_parameter(model: Model) -> None:
    described = schema(model)
    Draft202012Validator.check_schema(described)
    properties = described["properties"]
    assert isinstance(properties, dict)
    assert set(properties) == {*model.parameters, "size"}
    assert properties["seed"]["type"] == ["integer", "null"]
    assert (properties["width"]["minimum"], properties["steps"]["maximum"]) == (64, 50)
    assert described["title"] == model.title


# The catalogue


def test_adding_a_file_adds_a_model(tmp_path: Path) -> None:
    catalogue = Catalogue.load([folder_of(tmp_path, plain=PLAIN + WIDTH)])
    assert [model.name for model in catalogue] == ["flux", "plain", "sd"]
    plain = catalogue.get("plain")
    assert (plain.run_timeout_s, plain.load_timeout_s, plain.revision, plain.default) == (600, 900, None, False)
    assert validate(plain, {}) == {"width": 64}


def test_a_required_parameter_is_asked_for(tmp_path: Path) -> None:
    plain = model_from(
        tmp_path, PLAIN + '[parameters.motif]\ntype = "string"\ndescription = "Motif."\nrequired = true\n'
    )
    assert faults_of(plain, {}) == {"motif": "is missing"}
    assert faults_of(plain, {"motif": None}) == {"motif": "must be a string"}
    assert schema(plain)["required"] == ["motif"]


def test_without_width_and_height_there_is_no_size(tmp_path: Path) -> None:
    plain = model_from(tmp_path, PLAIN + WIDTH)
    assert list(faults_of(plain, {"size": "64x64"})) == ["size"]


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnknownModel, match=r'no model "fluxx"\. There are: flux, sd\.') as caught:
        SHIPPED.get("fluxx")
    assert caught.value.status == 404


def test_an_unknown_models_name_can_be_encoded_in_the_answer() -> None:
    with pytest.raises(UnknownModel) as caught:
        SHIPPED.get("\ud800" + "x" * 10_000)
    assert len(caught.value.detail.encode("utf-8")) < 200


def test_a_stand_in_is_a_file_that_extends(tmp_path: Path) -> None:
    stand_in = 'extends = "flux"\nsource = "/some/folder"\ndtype = "float32"\npool = "local"\nserved_as = "untrained"\n'
    catalogue = Catalogue.load([folder_of(tmp_path, flux=stand_in)])
    flux = catalogue.default
    assert (flux.name, flux.source, flux.pool, flux.served) == ("flux", "/some/folder", "local", "untrained")
    assert flux.parameters == FLUX.parameters
    assert len(catalogue) == 2


def test_a_file_may_extend_under_a_new_name_and_is_not_the_default_for_it(tmp_path: Path) -> None:
    text = """
    extends = "flux"
    name = "flux-dev"
    source = "black-forest-labs/FLUX.1-dev"
    [parameters.guidance]
    argument = "guidance_scale"
    default = 3.5
    [parameters.safety]
    type = "boolean"
    description = "New."
    [parameters.scheduler]
    type = "string"
    description = "Declared again: the choices are gone."
    [parameters]
    cache_threshold = false
    """
    after = 'extends = "flux"\nname = "flux-two"\n'
    catalogue = Catalogue.load([folder_of(tmp_path, dev=text, two=after)])
    dev = catalogue.get("flux-dev")
    assert catalogue.default.name == "flux"
    guidance = dev.parameters["guidance"]
    assert (guidance.argument, guidance.default, guidance.maximum) == ("guidance_scale", 3.5, 20)
    assert "cache_threshold" not in dev.parameters
    assert dev.parameters["scheduler"].choices == ()
    assert catalogue.get("flux-two").parameters == FLUX.parameters, "the base is as it was"


def test_what_belongs_to_a_source_goes_with_it(tmp_path: Path) -> None:
    plain = PLAIN + 'revision = "abc"\nserved_as = "a stand-in"\n'
    same = 'extends = "plain"\nname = "same"\ntitle = "Same"\n'
    other = 'extends = "plain"\nname = "other"\nsource = "elsewhere/plain"\n'
    catalogue = Catalogue.load([folder_of(tmp_path, a=plain, b=same, c=other)])
    assert (catalogue.get("same").revision, catalogue.get("same").served) == ("abc", "a stand-in")
    assert (catalogue.get("other").revision, catalogue.get("other").served) == (None, "other")


def test_a_later_folder_replaces_or_extends_the_earlier(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "first", plain=PLAIN + WIDTH)
    second = folder_of(tmp_path / "second", plain='extends = "plain"\ntitle = "Second"\n')
    third = folder_of(tmp_path / "third", plain=PLAIN)
    extended = Catalogue.load([first, second]).get("plain")
    assert (extended.title, list(extended.parameters)) == ("Second", ["width"])
    assert Catalogue.load([first, second, third]).get("plain").parameters == {}


def test_the_default_can_be_moved(tmp_path: Path) -> None:
    flux = 'extends = "flux"\ndefault = false\n'
    sd = 'extends = "sd"\ndefault = true\n'
    assert Catalogue.load([folder_of(tmp_path, flux=flux, sd=sd)]).default.name == "sd"


def test_a_model_crosses_to_a_spawned_process() -> None:
    assert pickle.loads(pickle.dumps(FLUX)) == FLUX  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("name = ", "is not TOML", id="no TOML"),
        pytest.param('title = "x"', "name: is missing", id="no name"),
        pytest.param(PLAIN.replace('pool = "local"', ""), "pool: is missing", id="no pool"),
        pytest.param(PLAIN.replace('"Plain"', '" "'), "title: must be a string with something", id="blank title"),
        pytest.param(PLAIN.replace('"Plain"', "7"), "title: must be a string", id="number as title"),
        pytest.param(PLAIN.replace('"plain"', '"Plain"'), 'name: "Plain" does not match', id="upper case"),
        pytest.param(PLAIN.replace('"plain"', '"' + "x" * 42 + '"'), "name: ", id="long name"),
        pytest.param(PLAIN.replace('"float32"', '"float8"'), 'dtype: "float8"', id="unknown dtype"),
        pytest.param(PLAIN + "timeout = 3", "timeout: is no key here", id="unknown key"),
        pytest.param(PLAIN + "run_timeout = 3", 'did you mean "run_timeout_s"?', id="unknown key, near"),
        pytest.param(PLAIN + 'default = "yes"', "default: must be true or false", id="text as flag"),
        pytest.param(PLAIN + "default = true", "default: exactly one file must set it; ", id="two defaults"),
        pytest.param('extends = "flux"\ndefault = false', "must set it; none does", id="no default"),
        pytest.param(PLAIN + "run_timeout_s = 0", "run_timeout_s: must be an integer from 1 to", id="no time"),
        pytest.param(PLAIN + "run_timeout_s = 99999", "run_timeout_s: must be", id="beyond the visibility timeout"),
        pytest.param(PLAIN + "load_timeout_s = true", "load_timeout_s: must be an integer", id="true as time"),
        pytest.param(PLAIN + "max_pixels = 4096", "max_pixels: requires the parameters", id="pixels without sides"),
        pytest.param(PLAIN + "parameters = 1", "parameters: must hold tables", id="parameters as a number"),
        pytest.param(PLAIN + "[parameters]\nwidth = 1", "parameters.width: must be a table", id="parameter as number"),
        pytest.param(PLAIN + "[parameters]\nwidth = false", "parameters.width: must be a table", id="taken from none"),
        pytest.param(PLAIN + "[parameters.Width]", "parameters.Width: is a field of the job, or no", id="upper case"),
        pytest.param(PLAIN + "[parameters.webhook]", "parameters.webhook: is a field of the job", id="a job's field"),
        pytest.param(PLAIN + "[parameters.size]", "parameters.size: is a field of the job", id="the alias"),
        pytest.param(PLAIN + "[parameters.x]", "parameters.x.type: is missing", id="no type"),
        pytest.param(PLAIN + '[parameters.x]\ntype = "int"', 'parameters.x.type: "int"', id="unknown type"),
        pytest.param(PLAIN + '[parameters.x]\ntype = "string"', "x.description: is missing", id="no description"),
        pytest.param(PLAIN + WIDTH + "max_length = 3", "width.max_length: is no key here", id="limit of another type"),
        pytest.param(PLAIN + WIDTH + "minumum = 3", 'did you mean "minimum"?', id="misspelt limit"),
        pytest.param(PLAIN + WIDTH.replace("= 128", "= 128.0"), "maximum: must be an integer", id="maximum 128.0"),
        pytest.param(PLAIN + WIDTH.replace("= 128", "= 9007199254740992"), "maximum: must be within", id="too far"),
        pytest.param(PLAIN + WIDTH.replace("= 128", "= 32"), "minimum: is above maximum", id="limits crossed"),
        pytest.param(PLAIN + WIDTH.replace("default = 64", "default = 256"), "must be at most 128", id="default above"),
        pytest.param(PLAIN + WIDTH.replace("default = 64", "default = 65"), "a multiple of 8", id="default between"),
        pytest.param(PLAIN + WIDTH + "choices = [64, 60]", "width.choices: must be at least 64", id="choice below"),
        pytest.param(PLAIN + WIDTH + "choices = [72]", "width.default: must be one of 72", id="default no choice"),
        pytest.param(PLAIN + WIDTH + "choices = []", "width.choices: must be an array with", id="no choices"),
        pytest.param(PLAIN + WIDTH + "required = true", "width.default: is of no use", id="default and required"),
        pytest.param(PLAIN + WIDTH + "needs_above = 3", "needs_above: must be a table of numbers", id="bare level"),
        pytest.param(PLAIN + WIDTH + "needs_above = {x = 1}", 'needs_above: "x" is no number', id="unknown level"),
        pytest.param(PLAIN + WIDTH + "needs_above = {x = nan}", "needs_above.x: must be within", id="level NaN"),
        pytest.param(
            PLAIN + WIDTH.replace("default = 64", "needs_above = {x = 1}"), "requires a default", id="effect unknown"
        ),
        pytest.param(
            PLAIN + '[parameters.width]\ntype = "string"\ndescription = "W."', "width.type: must be integer", id="words"
        ),
        pytest.param(
            PLAIN + '[parameters.x]\ntype = "number"\ndescription = "X."\nmaximum = inf', "x.maximum: must be", id="inf"
        ),
        pytest.param(
            PLAIN + '[parameters.x]\ntype = "number"\ndescription = "X."\ndefault = nan', "a finite number", id="NaN"
        ),
        pytest.param(
            PLAIN + '[parameters.x]\ntype = "boolean"\ndescription = "X."\nchoices = [true]',
            "x.choices: is no key",
            id="b",
        ),
        pytest.param('extends = "nothing"', 'extends: "nothing" was not read before', id="no base"),
        pytest.param("extends = 3", "extends: must be a string", id="base as a number"),
        pytest.param('extends = "flux"\nparameters = 3', "parameters: must hold tables", id="changes as a number"),
        pytest.param('extends = "flux"\n[parameters]\nx = false', "no such parameter to remove", id="taken twice"),
        pytest.param('extends = "flux"\n[parameters]\nseed = true', "parameters.seed: must be a table", id="true"),
        pytest.param('extends = "flux"\n[parameters]\nwidth = false', "max_pixels: requires", id="pixels of no width"),
        pytest.param('extends = "flux"\n[parameters]\nguidance = false', '"guidance" is no number', id="level gone"),
        pytest.param(
            'extends = "flux"\n[parameters.width]\nmaximum = 512', "width.default: must be at most 512", id="cut"
        ),
    ],
)
def test_a_file_with_a_fault_is_refused_by_file_and_key(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SettingError) as caught:
        Catalogue.load([folder_of(tmp_path, faulty=text)])
    assert reason in caught.value.detail
    assert "faulty.toml" in caught.value.detail or "default: " in caught.value.detail


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_name_that_is_a_route_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match="name: "):
        Catalogue.load([folder_of(tmp_path, faulty=PLAIN.replace('"plain"', f'"{name}"'))])


def test_two_files_of_one_folder_may_not_have_one_name(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r'b\.toml: name: "plain" is also in .*a\.toml'):
        Catalogue.load([folder_of(tmp_path, a=PLAIN, b=PLAIN)])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="absent: is not a folder of model files"):
        Catalogue.load([tmp_path / "absent"])


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(SettingError, match=r"latin\.toml: cannot be read"):
        Catalogue.load([tmp_path])
