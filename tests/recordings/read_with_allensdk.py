"""Read NWB files with allensdk and write what it gives as npz: run where allensdk is installed.

Usage: read_with_allensdk.py RAW OUT
"""

import sys
from pathlib import Path

import numpy as np
from allensdk.core.brain_observatory_nwb_data_set import (
    BrainObservatoryNwbDataSet,
    EpochSeparationException,
    NoEyeTrackingException,
)


def read(path):
    session = BrainObservatoryNwbDataSet(str(path))
    times, dff = session.get_dff_traces()
    speed, speed_times = session.get_running_speed()
    found = {
        "times": times,
        "dff": dff,
        "roi_ids": session.get_roi_ids(),
        "cell_specimen_ids": session.get_cell_specimen_ids(),
        "masks": session.get_roi_mask_array(),
        "speed": speed,
        "speed_times": speed_times,
    }
    try:
        found["pupil_times"], found["pupil_location"] = session.get_pupil_location()
        found["pupil_size"] = session.get_pupil_size()[1]
    except NoEyeTrackingException:
        pass
    for name in session.list_stimuli():
        table = session.get_stimulus_table(name)
        for column in table:
            found[f"table/{name}/{column}"] = table[column].to_numpy()
    try:
        epochs = session.get_stimulus_epoch_table()
        for column in ("stimulus", "start", "end"):
            found[f"epochs/{column}"] = (
                epochs[column].to_numpy().astype(str if column == "stimulus" else int)
            )
    except EpochSeparationException as error:
        found["not_separable"] = np.array(str(error))
    for key, value in session.get_metadata().items():
        found[f"about/{key}"] = np.array(str(value))
    return found


if __name__ == "__main__":
    raw, out = map(Path, sys.argv[1:])
    for path in sorted(raw.glob("*.nwb")):
        np.savez(out / f"{path.stem}.npz", **read(path))
