import re
from html.parser import HTMLParser

import matplotlib as mpl
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError, read_json, write_json, write_table
from neuro_lens.report import write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Reads a page, checking that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.text = [], set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    page = Page(path.read_text("utf-8"))
    assert page.open == []
    return page


def drop(results, *names):
    for name in names:
        (results / f"{name}.parquet").unlink()


def test_the_report_is_one_file_without_network_or_script(results):
    before = dict(mpl.rcParams)
    path = write_report(results)
    text = path.read_text("utf-8")
    page = read(path)
    assert path == results / "report.html"
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "@import" not in text
    assert "url(" not in text
    assert len(page.images) >= 8
    assert all(image["alt"] for image in page.images)
    assert dict(mpl.rcParams) == before
    assert "was not run" not in page.text
    assert not re.search(r"\bnan\b|\bNone\b(?! in)|NaN", page.text)
    assert write_report(results).read_text("utf-8") == text


def test_the_headline_answers_with_the_tables_numbers(results, tables):
    drop(results, "tuning_curves", "ablation", "covariates")
    text = " ".join(read(write_report(results)).text.split())
    decoding = tables["decoding"].query(
        "recording_id == 'mrcuts28' and variable == 'direction' and window == 'stimulus'"
    )
    mean = decoding.query("decoder == 'transformer'")["accuracy"].mean()
    linear = decoding.query("decoder == 'linear'")["accuracy"].mean()
    assert f"Best in mrcuts28: direction {mean:.2f}" in text
    assert f"linear decoder {linear:.2f}" in text
    assert "At chance: mrcuts26." in text
    assert "more than random directions (0.61); no more than principal components (0.9" in text
    assert "How much of the dictionary an SAE of another seed on the same decoder finds" in text
    assert "None in mrcuts26." in text
    assert "Not beaten: signed PCs and constant bias." in text
    assert "matched random sets reach +0.26 (compared on the 12 of 16 values" in text
    assert "It costs log-loss; the criterion may only have moved" in text
    assert "Cannot be shown here" in text
    assert "Genotype is confounded with the date of imaging" in text


def test_a_stage_that_was_not_run_is_said_so_and_the_rest_stands(results, tables):
    drop(results, *(name for name in tables if name != "between"))
    (results / "provenance.json").unlink()
    text = read(write_report(results)).text
    for stage in ("decoding", "sae_eval", "tuning", "covariates", "ablation"):
        assert f"The stage that writes {stage} was not run." in text
    assert "Do features stand for genotype?" in text
    assert "Does the decoder read" not in text
    assert "There is no provenance.json" in text


def test_names_are_escaped(results, tables):
    drop(results, *(name for name in tables if name != "between"))
    provenance = read_json(results / "provenance.json")
    provenance["study"]["name"] = "<b>bold</b> & co"
    write_json(results / "provenance.json", provenance)
    page = read(write_report(results))
    assert "b" not in page.tags
    assert "<b>bold</b> & co" in page.text


def test_bad_folders_and_tables_are_named(results, tmp_path):
    with pytest.raises(NeuroLensError, match="there is no results folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NeuroLensError, match="none of a study's tables"):
        write_report(tmp_path / "empty")
    write_table(pd.DataFrame({"variable": ["genotype"]}), results, "between")
    with pytest.raises(NeuroLensError, match="lacks the columns hook, split, count, is_true"):
        write_report(results)
    (results / "between.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(NeuroLensError, match=r"between\.parquet is not a readable Parquet file"):
        write_report(results)
    assert not (results / "report.html").exists()
