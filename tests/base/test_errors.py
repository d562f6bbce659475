import pytest

from neuro_lens.base import NeuroLensError, check_choice, nearest


def test_the_nearest_name_is_offered():
    with pytest.raises(NeuroLensError) as error:
        check_choice(
            "hook", "blocks.1.resid_post", ["blocks.1.hook_resid_post"], "see hook_table()"
        )
    assert str(error.value) == (
        "unknown hook 'blocks.1.resid_post'; did you mean 'blocks.1.hook_resid_post'? "
        "see hook_table()"
    )


def test_a_known_name_passes_and_a_strange_one_gets_no_guess():
    check_choice("split", "fit", ["fit", "select"])
    assert nearest("zzzzz", ["fit", "select"]) is None
