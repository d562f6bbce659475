"""Harvests in child processes that are killed; run as a script, it says what it did as JSON.

``killed.py OUT random`` kills children at random moments, and lets the last one end.
``killed.py OUT rename`` kills one right after each of its renames, and lets the next one end.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import Embedding, padded_batch

from neuro_lens.activations import harvest, shards
from neuro_lens.hooks import Out, hook_model

HOOKS = ["hook_embed", "hook_head"]


def many_batches(n=12):
    for seed in range(n):
        batch = padded_batch(seed, [4, 2, 3, 5], "abc"[seed * 3 // n])
        batch.inputs["x"] = batch.inputs["x"].nan_to_num()
        yield batch


def run(out, pause=0.0, shard_bytes=900):
    """Harvest two hooks and return how often the decoder ran."""
    torch.manual_seed(0)
    calls = []
    decoder = Embedding()
    decoder.register_forward_pre_hook(lambda *_: calls.append(time.sleep(pause)))
    taps = [Out("hook_embed", "embed", axis="token"), Out("hook_head", "head", axis="window")]
    hooked = hook_model(decoder, taps=taps, masks={"token": "mask"}, timestamps={"token": "times"})
    shards.SHARD_BYTES = shard_bytes
    harvest(hooked, many_batches(), HOOKS, out=out)
    return len(calls)


def forked(function):
    """Run a function in a child process and return its id."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException as error:
            sys.stderr.write(f"{error}\n")
            os._exit(1)
        os._exit(0)
    return child


def kill_at_random(out, at_least=6, pause=0.01):
    """Kill children until each hook has a shard; each lives no longer than half a harvest."""
    began = time.monotonic()
    os.waitpid(forked(lambda: run(out.with_name("timed"), pause)), 0)
    half = (time.monotonic() - began) / 2
    rng, killed, stored = random.Random(0), 0, False
    while killed < at_least or not stored:
        child = forked(lambda: run(out, pause))
        time.sleep(rng.uniform(0.0, half))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        killed += 1
        stored = len({path.parent for path in out.rglob("shard-*.json")}) == len(HOOKS)
    return killed


def kill_after_rename(out, n):
    replace, count = os.replace, iter(range(1, 10**6))

    def replace_and_die(*paths):
        replace(*paths)
        if next(count) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    def mortal():
        os.replace = replace_and_die
        run(out)

    return os.waitstatus_to_exitcode(os.waitpid(forked(mortal), 0)[1]) == -signal.SIGKILL


def main(out, how):
    if how == "whole":
        return {"calls": run(out)}
    if how == "random":
        return {"killed": kill_at_random(out), "calls": run(out)}
    done, killed = [], True
    while killed:
        folder = out / str(len(done) + 1)
        killed = kill_after_rename(folder, len(done) + 1)
        done.append({"killed": killed, "calls": run(folder)})
    return done


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
