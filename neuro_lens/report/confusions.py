"""What is answered on each value's trials, with its features and without them."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from .blocks import Picture, Results
from .removal import ablated_hooks
from .style import DIVERGING, blank, plural, styled, value_name

MOST_NAMED = 12
PANELS = {"share_spliced": "before", "share": "its features removed"}


def confusion_blocks(results: Results) -> list[Picture]:
    """Return the picture of the ``ablation_confusions`` table, a picture a hook."""
    table = results.get("ablation_confusions")
    if table is None:
        return []
    found = []
    for hook in ablated_hooks(results)[0]:
        own = table[table["hook"] == hook]
        if len(own):
            n = own["recording_id"].nunique()
            words = (
                "Share of each value's trials (row) that are answered by each value (column), with "
                "the dictionary in place and nothing removed, and with the value's own features "
                f"removed, at {hook}. Means over {plural(n, 'recording')}, halves and seeds."
            )
            found.append(Picture(plot_confusions(own), words, f"Answers at {hook}"))
    return found


@styled
def plot_confusions(confusions: pd.DataFrame) -> Figure:
    """Plot what is answered on each value's trials, before and after its features are removed.

    Parameters
    ----------
    confusions : DataFrame
        `neuro_lens.ablation.AblationStudy.confusions`, of one hook; means are over all else.

    Returns
    -------
    Figure
    """
    own = confusions[confusions["ablated"] == confusions["tested"]]
    names = own.drop_duplicates("answered_class").set_index("answered_class")["answered"]
    figure = blank(8.6, 3.6)
    axes = figure.subplots(1, 2, squeeze=False)[0]
    for axis, (column, title) in zip(axes, PANELS.items(), strict=True):
        share = own.pivot_table(index="tested", columns="answered_class", values=column)
        image = axis.imshow(share.to_numpy(), cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
        axis.set(title=title, xlabel="answered")
        for set_ticks, labels in (
            (axis.set_xticks, [value_name(names[c]) for c in share.columns]),
            (axis.set_yticks, [value_name(v) for v in share.index]),
        ):
            step = -(-len(labels) // MOST_NAMED)
            set_ticks(range(0, len(labels), step), labels[::step])
    axes[0].set_ylabel("shown")
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, label="share of trials")
    bar.ax.set_ylim(0, 1)
    return figure
