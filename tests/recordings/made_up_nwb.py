"""Write small Brain Observatory NWB 1.0 files of made-up cells whose tuning is known.

The layout is that of the Visual Coding two-photon files, so that allensdk's reader takes them.
Needs numpy and h5py only.
"""

from dataclasses import dataclass, field

import h5py
import numpy as np

RATE = 30.08
PIPELINE = "processing/brain_observatory_pipeline"
DIRECTIONS = np.arange(8) * 45.0
FREQUENCIES = np.array([1.0, 2.0, 4.0, 8.0, 15.0])
CUX2 = "Cux2-CreERT2/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/Ai93(TITL-GCaMP6f)"


@dataclass
class Stimuli:
    """What was shown: for each stimulus rows of values and their first and last frame."""

    rows: dict = field(default_factory=dict)
    frames: dict = field(default_factory=dict)
    now: int = 60

    def show(self, name, values, length, grey=0):
        for value in np.asarray(values):
            self.rows.setdefault(name, []).append(value)
            self.frames.setdefault(name, []).append((self.now, self.now + length))
            self.now += length + grey

    def rest(self, frames=150):
        self.now += frames

    def spontaneous(self, length):
        first, last = self.now, self.now + length
        self.rows.setdefault("spontaneous", []).extend([1, -1])
        self.frames.setdefault("spontaneous", []).extend([(first, first), (last, last)])
        self.now = last
        self.rest()


def session_a(rng, trials=24, movie=60, breaks=0, repeats=2):
    """Three blocks of drifting gratings between movies; ``breaks`` cuts the gratings further."""
    long = np.tile(np.arange(2 * movie), repeats // 2)
    show = Stimuli()
    order = _grating_order(rng, 3 * trials)
    for block in range(3):
        chosen = order[block * trials : (block + 1) * trials]
        for part in np.array_split(chosen, 1 + (breaks if block == 0 else 0)):
            show.show("drifting_gratings", part, 60, grey=30)
            show.rest()
        if block == 0:
            show.show("natural_movie_three", long, 1)
            show.rest()
            show.show("natural_movie_one", np.tile(np.arange(movie), repeats), 1)
        elif block == 1:
            show.show("natural_movie_three", long, 1)
            show.rest()
            show.spontaneous(300)
        show.rest()
    return show


def session_b(rng, trials=40, movie=60, repeats=2):
    """Static gratings and natural scenes, a quarter of a second each, around a movie."""
    show = Stimuli()
    static = [(o, s, p) for o in range(0, 180, 30) for s in (0.02, 0.04, 0.08, 0.16, 0.32)
              for p in (0.0, 0.25, 0.5, 0.75)]  # fmt: skip
    static = np.array([*static, (np.nan, np.nan, np.nan)])
    for block in range(3):
        show.show("static_gratings", static[rng.integers(0, len(static), trials)], 7, grey=1)
        show.rest()
        show.show("natural_scenes", rng.integers(-1, 118, trials), 7, grey=1)
        show.rest()
        if block == 0:
            show.spontaneous(300)
            show.show("natural_movie_one", np.tile(np.arange(movie), repeats), 1)
            show.rest()
    return show


def session_c(rng, frames=80, movie=60):
    """Locally sparse noise of one size, twice, each time before a movie."""
    show = Stimuli()
    for which in ("one", "two"):
        show.show("locally_sparse_noise", np.arange(frames), 7, grey=1)
        show.rest()
        show.show(f"natural_movie_{which}", np.arange(movie), 1)
        show.rest()
    show.spontaneous(300)
    return show


def session_c2(rng, frames=80, movie=60):
    """Locally sparse noise of two sizes, two movies."""
    show = Stimuli()
    for name in ("locally_sparse_noise_4deg", "locally_sparse_noise_8deg"):
        show.show(name, np.arange(frames), 7, grey=1)
        show.rest()
        show.show("natural_movie_" + ("one" if "4" in name else "two"), np.arange(movie), 1)
        show.rest()
    show.spontaneous(300)
    return show


SESSIONS = {
    "three_session_A": session_a,
    "three_session_B": session_b,
    "three_session_C": session_c,
    "three_session_C2": session_c2,
}


def write_nwb(
    path,
    session_id=501574836,
    *,
    session_type="three_session_A",
    genotype=CUX2,
    donor=222426,
    container=511510911,
    area="VISp",
    depth=175,
    n_cells=6,
    decay=0.5,
    noise=0.05,
    eye=True,
    seed=0,
    tuned=True,
    axial=False,
    responsive=False,
    **layout,
):
    """Write a session and return the preferred direction of each cell, in degrees.

    ``decay`` (s) is that of the cells' calcium; ``layout`` goes to the session's stimuli.
    With ``axial`` every second cell answers the opposite direction as well as its own, so that it
    is tuned to orientation.
    ``responsive`` cells also answer static gratings near their orientation, some scenes and some
    moments of the movies, and every third of them runs along.
    """
    rng = np.random.default_rng(seed)
    show = SESSIONS[session_type](rng, **layout)
    n_frames = show.now + 60
    times = 10.0 + np.arange(n_frames) / RATE
    preferred = rng.choice(DIRECTIONS, n_cells)
    more, speed = 0.0, None
    if responsive:
        apart = np.random.default_rng([seed, 1])  # what is made without it stays as it is
        speed = _running(apart, n_frames)
        more = _other_answers(apart, show, preferred, n_frames, speed)
    both_ways = np.arange(n_cells) % 2 == 1 if axial else np.zeros(n_cells, bool)
    drive = _grating_answers(show, preferred, n_frames, tuned, both_ways)
    dff = _traces(rng, drive + more, decay, noise)
    with h5py.File(path, "w") as file:
        _about(file, session_id, session_type, genotype, donor, container, area, depth)
        _cells(file, rng, session_id, dff, times)
        _behaviour(file, rng, n_frames, times, eye, speed)
        _stimuli(file, show, times)
    return preferred


def _grating_order(rng, n):
    """Rows of temporal frequency, direction and whether it is a blank; directions in turn."""
    direction = np.concatenate([rng.permutation(DIRECTIONS) for _ in range(n // 8 + 1)])[:n]
    rows = np.stack([rng.choice(FREQUENCIES, n), direction, np.zeros(n)], 1)
    rows[rng.choice(n, max(1, n // 25), replace=False)] = (np.nan, np.nan, 1.0)
    return rows


def _running(rng, n_frames):
    """Speed (cm/s) that comes and goes over some ten seconds."""
    slow = np.repeat(rng.standard_normal(n_frames // 300 + 2), 300)
    smooth = np.convolve(slow, np.ones(150) / 150, mode="same")[:n_frames]
    return (20 * np.maximum(smooth, 0)).astype(np.float32)


def _other_answers(rng, show, preferred, n_frames, speed):
    """What drives cells beside drifting gratings: static ones, scenes, movies and running."""
    drive = np.zeros((len(preferred), n_frames))
    names = [n for n in show.rows if n.startswith("natural")]
    likes = {name: rng.integers(0, 118, (len(preferred), 12)) for name in names}
    for name, rows in show.rows.items():
        for value, (first, last) in zip(rows, show.frames[name], strict=True):
            if name == "static_gratings" and not np.isnan(value[0]):
                away = np.deg2rad(2 * (value[0] - preferred))
                drive[:, first:last] += 2 * np.exp(2 * np.cos(away) - 2)[:, None]
            elif name == "natural_scenes":
                drive[:, first:last] += 2 * (likes[name] == value).any(1)[:, None]
            elif name in likes:
                near = (np.abs(likes[name][:, :2] % (len(rows) // 2) - value) < 4).any(1)
                drive[:, first:last] += near[:, None]
    drive[::3] += 0.03 * speed
    return drive


def _grating_answers(show, preferred, n_frames, tuned, both_ways):
    """Return the drive of cells, which fire more to gratings near their direction."""
    drive = np.zeros((len(preferred), n_frames))
    shown = zip(
        show.rows.get("drifting_gratings", []), show.frames.get("drifting_gratings", []),
        strict=True,
    )  # fmt: skip
    for (_, direction, blank), (first, last) in shown:
        if not blank:
            away = np.deg2rad(direction - preferred) if tuned else np.full(len(preferred), 1.0)
            away = np.where(both_ways, 2 * away, away)
            drive[:, first:last] += np.exp(2 * np.cos(away) - 2)[:, None]
    return drive


def _traces(rng, drive, decay, noise):
    """Cells fire at random where they are driven; each event decays."""
    drive = drive * (rng.random(drive.shape) < 0.15)
    dff, kept = np.zeros_like(drive), np.exp(-1 / (decay * RATE))
    for i in range(1, drive.shape[1]):
        dff[:, i] = kept * dff[:, i - 1] + drive[:, i]
    return (dff + noise * rng.standard_normal(dff.shape)).astype(np.float32)


def _about(file, session_id, session_type, genotype, donor, container, area, depth):
    drivers = ";".join(part.split("/")[0] for part in genotype.split(";"))
    plane = "general/optophysiology/imaging_plane_1/"
    text = {
        "nwb_version": "NWB-1.0.6",
        "identifier": str(session_id),
        "session_description": "made up",
        "file_create_date": "2016-06-01T00:00:00",
        "session_start_time": "Fri Jan 15 12:00:00 2016",
        "general/subject/age": "104 days",
        "general/subject/sex": "male",
        "general/subject/genotype": genotype,
        "general/subject/subject_id": str(donor),
        "general/subject/species": "Mus musculus",
        plane + "imaging depth": f"{depth} microns",
        plane + "location": area,
        plane + "indicator": "GCaMP6f",
        plane + "imaging_rate": "30 Hz",
        plane + "excitation_lambda": "910 nanometers",
        "general/session_id": str(session_id),
        "general/ophys_experiment_id": str(session_id),
        "general/experiment_container_id": str(container),
        "general/session_type": session_type,
        "general/specimen_name": f"{drivers}-{donor}",
        "general/targeted_structure": area,
        "general/fov": "400x400 microns (512 x 512 pixels)",
        "general/devices/2-photon microscope": (
            "Nikon A1R-MP multiphoton microscope. CAM2P.1 Please note that this is made up"
        ),
    }
    for name, value in text.items():
        file[name] = np.bytes_(value)
    file["general/generated_by"] = np.array([b"version", b"2.0"])


def _series(group, name, data, times, **more):
    series = group.create_group(name)
    series.attrs["neurodata_type"] = np.bytes_("TimeSeries")
    series["data"], series["timestamps"] = data, times
    series["num_samples"] = np.int32(len(times))
    for key, value in more.items():
        series[key] = value
    return series


def _cells(file, rng, session_id, dff, times):
    module = file.create_group(PIPELINE)
    n_cells = len(dff)
    segmentation = module.create_group("ImageSegmentation")
    segmentation["cell_specimen_ids"] = (
        517_000_000 + 1000 * (session_id % 1000) + np.arange(n_cells)
    )
    segmentation["roi_ids"] = 540_000_000 + 1000 * (session_id % 1000) + np.arange(n_cells)
    plane = segmentation.create_group("imaging_plane_1")
    names = [f"roi_{i:04d}".encode() for i in range(n_cells)]
    plane["roi_list"] = np.array(names)
    for name in names:
        mask = np.zeros((512, 512), np.uint8)
        (y, x), (h, w) = rng.integers(20, 490, 2), rng.integers(5, 12, 2)
        mask[y : y + h, x : x + w] = 1
        roi = plane.create_group(name)
        roi.create_dataset("img_mask", data=mask, compression="gzip")
        roi["pix_mask"] = np.argwhere(mask).astype(np.int16)
        roi["pix_mask_weight"] = np.ones(int(mask.sum()), np.float32)
    traces = {
        "DfOverF/imaging_plane_1": dff,
        "Fluorescence/imaging_plane_1": 100 * (1 + dff),
        "Fluorescence/imaging_plane_1_demixed_signal": 100 * (1 + dff),
        "Fluorescence/imaging_plane_1_neuropil_response": np.full_like(dff, 10.0),
    }
    for place, data in traces.items():
        interface, name = place.split("/")
        _series(module.require_group(interface), name, data, times, roi_names=np.array(names))
    module["Fluorescence/imaging_plane_1_neuropil_response/r"] = np.full(n_cells, 0.5, np.float32)


def _behaviour(file, rng, n_frames, times, eye, speed):
    module = file[PIPELINE]
    walk = np.abs(np.cumsum(rng.standard_normal(n_frames)) % 40 - 20).astype(np.float32)
    speed = walk if speed is None else speed.copy()
    speed[:3] = np.nan
    speed[100:110] = np.nan
    _series(module.create_group("BehavioralTimeSeries"), "running_speed", speed, times)
    if eye:
        place = rng.standard_normal((n_frames, 2))
        size = 100 + np.cumsum(rng.standard_normal(n_frames)) * 0.1
        place[50:60], size[200:210] = np.nan, np.nan
        tracking = module.create_group("EyeTracking")
        _series(tracking, "pupil_location_spherical", place, times)
        _series(tracking, "pupil_location", place / 10, times)
        _series(module.create_group("PupilTracking"), "pupil_size", size, times)


def _stimuli(file, show, times):
    features = {
        "drifting_gratings": [b"temporal_frequency", b"orientation", b"blank_sweep"],
        "static_gratings": [b"orientation", b"spatial_frequency", b"phase"],
    }
    presentation = file.create_group("stimulus/presentation")
    for name, rows in show.rows.items():
        frames = np.array(show.frames[name], np.int32)
        more = {"features": np.array(features[name])} if name in features else {}
        series = _series(
            presentation, f"{name}_stimulus", np.array(rows), times[frames[:, 0]], **more
        )
        series["frame_duration"] = frames
