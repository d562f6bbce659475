import numpy as np

from neuro_lens.base import read_json, write_json
from neuro_lens.report.blocks import Grid, Paragraph, Picture, Results
from neuro_lens.report.removal import ablation_section


def with_opposite(summary, low):
    given = {"opposite": 0.2, "beyond_opposite": 0.4, "beyond_opposite_high": 0.7}
    return summary.assign(**given, beyond_opposite_low=low)


def blocks(results, kind):
    return [b for b in ablation_section(Results(results)).blocks if isinstance(b, kind)]


def grid(results):
    return next(g for g in blocks(results, Grid) if g.headers[0] == "removed")


def test_what_a_direction_loses_beyond_its_opposite_is_shown(results, tables):
    with_opposite(tables["ablation_summary"], 0.1).to_parquet(results / "ablation_summary.parquet")
    said = " ".join(p.text for p in blocks(results, Paragraph))
    assert "loses +0.20 nats, +0.40 less than the direction itself" in said
    assert "(95 % interval +0.10 to +0.70): what is removed is of the direction" in said
    shown = dict(zip(grid(results).headers, grid(results).rows[0], strict=True))
    assert shown["opposite"] == "+0.20"
    assert shown["on − opposite [95 %]"] == "+0.40 [0.10, 0.70]"


def test_without_opposites_nothing_is_shown_of_them(results, tables):
    table = with_opposite(tables["ablation_summary"], np.nan)
    columns = [c for c in table if "opposite" in c]
    table.assign(**dict.fromkeys(columns, np.nan)).to_parquet(results / "ablation_summary.parquet")
    assert not any("pposite" in header for header in grid(results).headers)
    assert "pposite" not in grid(results).caption
    assert not any("pposite" in p.text for p in blocks(results, Paragraph))


def test_captions_say_what_was_chosen(results, tables):
    caption = blocks(results, Picture)[-1].caption
    assert "dotted, of features from another recording: also over their choice" in caption
    assert "decoded best" not in caption
    provenance = read_json(results / "provenance.json")
    provenance["study"]["ablation"]["recordings"] = "best"
    write_json(results / "provenance.json", provenance)
    assert "decoded best on the select half" in blocks(results, Picture)[-1].caption
    table = tables["ablation_summary"].query("not dictionary.str.startswith('features from')")
    table.to_parquet(results / "ablation_summary.parquet")
    assert "another recording" not in blocks(results, Picture)[-1].caption
