import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.studies.planning import plan_cells
from neuro_lens.studies.schema import Study
from neuro_lens.studies.study_file import bundled_study, load_study


def complaint(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(NeuroLensError) as caught:
        load_study(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_the_bundled_study_is_the_v1_gratings_study():
    study = load_study(bundled_study("v1_gratings"))
    assert study.recordings.source == "sur_v1"
    assert study.recordings.simulate is None
    assert study.ablation.hook in study.sae.hooks
    assert study.ablation.negative not in study.ablation.recordings


def test_a_file_a_mapping_and_a_study_mean_the_same(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nseeds: [0, 1]\nrecordings: {window: [0, 1]}\ndecoder: {lr: 2e-3}\n")
    from_file = load_study(path)
    from_mapping = load_study(
        {"name": "a", "seeds": [0, 1], "recordings": {"window": (0, 1)}, "decoder": {"lr": 2e-3}}
    )
    assert from_file == from_mapping
    assert load_study(from_file) is from_file
    assert from_file.recordings.window == (0.0, 1.0)


def test_the_decision_is_shown_by_default_only_where_it_has_an_sae():
    block, decision = "blocks.-1.hook_resid_post", "dec.hook_resid_post"
    without = {"name": "a", "sae": {"hooks": [block]}}
    ablated = [s for s, _ in plan_cells(load_study(without))].count("ablation")
    shown = {"name": "a", "ablation": {"decision_hook": decision}}
    assert [s for s, _ in plan_cells(load_study(shown))].count("ablation") == ablated + 1
    by_its_number = {**without, "ablation": {"decision_hook": "blocks.1.hook_resid_post"}}
    load_study(by_its_number)
    best = {"name": "a", "ablation": {"recordings": "best", "negative": "best"}}
    load_study(best)  # a recording may be named so


def test_a_dumped_study_loads_again():
    study = load_study({"name": "a", "recordings": {"simulate": {"n_animals": 2}}})
    assert load_study(study.model_dump(exclude_unset=True)) == study
    assert isinstance(study, Study)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("name: a\nrecordings:\n  sorce: x\n", 3, "did you mean 'recordings.source'?"),
        ("name: a\nseed: [1]\n", 2, "did you mean 'seeds'?"),
        ("name: a\n\n\nwobble: {x: 1}\n", 4, "there are name, seeds"),
        ("name: a\ndecoder:\n  dim: 8\n  model: poyoo\n", 4, "'calcium_poyo_plus' or 'poyo'"),
        (
            "name: a\ndecoder:\n  noise: 0\n  model: poyo\n",
            4,
            "set recordings.pool: 1, recordings.",
        ),
        (
            "name: a\nrecordings: {pool: 1, normalise: null}\ndecoder:\n  mixup: 0\n"
            "  model: poyo\n",
            5,
            "mixed; set decoder.noise: 0",
        ),
        ("name: a\nsae:\n  d_sae: 16\n  k: eight\n", 4, "sae.k is 'eight'"),
        ("name: a\ndecoder:\n  steps: true\n", 3, "its default is 1200"),
        ("name: a\nsae: {architecture: topkk}\n", 2, "'batchtopk', 'topk'"),
        ("name: a\nablation:\n  recordings: worst\n", 3, "'best' or a valid list"),
        ("name: a\nseeds:\n- 0\n- -1\n", 4, "seeds[1] is -1"),
        ("name: a\nsae: null\n", 2, "a section with the fields hooks"),
        ("name: a\nsae:\n  k: 300\n", 2, "make k smaller"),
        ("name: a\nrecordings:\n  window: [2, 0]\n", 2, "end must come after its start"),
        ("name: a\nrecordings:\n  source: x\n  simulate: {}\n", 2, "one of them is expected"),
        ("name: a\nname: b\n", 2, "first on line 1"),
        ("name: a\nseeds: [1, 1]\n", 2, "only once"),
        ("name: a\n\ntuning: {variables: [direction, direction]}\n", 3, "tuning has variables"),
        ("name: a\nablation:\n  recordings: [x, x]\n", 2, "only once"),
        ("name: a\nablation:\n  recordings: [x, b]\n  negative: b\n", 2, "which is one of its"),
        (
            "name: a\nablation:\n  decision_hook: dec.hook_resid_pots\n",
            3,
            "ablation.decision_hook is 'dec.hook_resid_pots', but only the hooks of sae.hooks",
        ),
        ("name: a\nablation:\n  variable: genotype\n", 3, "choose one of them"),
        ("name: a\nablation:\n  hook: blocks.0.hook_resid_post\n", 3, "have an SAE"),
        (
            "name: a\nsae:\n  hooks: [blocks.-1.hook_resid_post, blocks.1.hook_resid_post]\n",
            3,
            "which are one hook of a decoder of depth 2; keep one",
        ),
        ("name: a\nsae:\n  hooks: [dec.hook_z, dec.hook_z]\n", 3, "keep one"),
        ("name: a\n1: 3\n", 2, "put it in quotes"),
        ("name: [\n", 2, "not YAML"),
    ],
)
def test_a_wrong_field_names_its_line_and_what_is_valid(tmp_path, text, line, says):
    message = complaint(tmp_path, text)
    assert message.startswith(f", line {line}: ")
    assert says in message


def test_of_several_wrong_fields_the_first_in_the_file_is_named(tmp_path):
    message = complaint(tmp_path, "name: a\ntuning:\n  alfa: .1\nseed: 3\n")
    assert message.startswith(", line 3: unknown field 'tuning.alfa'")


def test_a_file_that_is_no_mapping_says_so(tmp_path):
    assert "holds no fields" in complaint(tmp_path, "")
    assert "holds no fields" in complaint(tmp_path, "- a\n")
    assert "'name' is missing" in complaint(tmp_path, "seeds: [0]\n")


def test_a_missing_or_binary_file_says_so(tmp_path):
    with pytest.raises(NeuroLensError, match=r"there is no study file .*nowhere\.yaml"):
        load_study(tmp_path / "nowhere.yaml")
    with pytest.raises(NeuroLensError, match="there is no study file"):
        load_study(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(NeuroLensError, match="not a text file"):
        load_study(tmp_path / "binary.yaml")


def test_a_study_made_by_hand_is_checked_like_a_file():
    made = Study(name="a", ablation={"variable": "frame"})
    with pytest.raises(NeuroLensError, match=r"the study: ablation\.variable is 'frame'"):
        load_study(made)


def test_a_mapping_is_checked_like_a_file():
    with pytest.raises(NeuroLensError, match=r"the study: unknown field 'sae\.kk'"):
        load_study({"name": "a", "sae": {"kk": 3}})
