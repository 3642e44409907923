"""What is watched while a trainer trains: its progress, its memory, its checkpoints.

`watch` looks after all three.
"""

import functools
import time
from pathlib import Path

import transformers
from tqdm import tqdm
from transformers.utils.notebook import NotebookProgressCallback

from qlora_kit import fetch
from qlora_kit.memory.meter import Meter
from qlora_kit.training.runs import check_disk, training_seconds


def watch(trainer):
    """Watch progress, memory and checkpoints of the next `train()`; a line says what each is for.

    Returns the dictionary of `meter_one_step`, which is filled while the trainer trains.
    """
    text_progress(trainer)
    print("Progress: one bar with the loss, in a notebook and in a terminal.")
    seal_checkpoints(trainer)
    print("Checkpoints: each ends with a list of its files, so that a broken one is not resumed.")
    peaks = meter_one_step(trainer)
    print("Memory: one step is measured, part by part.")
    return peaks


def text_progress(trainer):
    """Replace the trainer's own progress display by one bar with the loss.

    Inside Jupyter, transformers draws an HTML table, which a terminal that runs the notebook cannot
    show.
    """

    class Bar(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            done = state.global_step  # more than 0 in a resumed run
            self.bar = tqdm(total=state.max_steps, initial=done, desc="Training", unit="step")

        def on_step_end(self, args, state, control, **_):
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

        def on_train_end(self, args, state, control, **_):
            self.bar.close()

    for other in (
        NotebookProgressCallback,
        transformers.ProgressCallback,
        transformers.PrinterCallback,
    ):
        trainer.remove_callback(other)
    trainer.add_callback(Bar)


def meter_one_step(trainer):
    """The most bytes that each phase of a training step takes: a dictionary, filled by `train()`.

    See `meter.Meter` for the phases. The second step is watched, as the optimizer has no states
    before the first; in a resumed run, its first. On a CPU that one step takes a little longer.
    """
    peaks = {}

    class Watch(transformers.TrainerCallback):
        meter = None

        def on_train_begin(self, args, state, control, **_):
            self.watched = max(1, state.global_step)

        def on_step_begin(self, args, state, control, model, optimizer, **_):
            if state.global_step == self.watched:
                self.meter = Meter(model, optimizer.optimizer).__enter__()

        def on_step_end(self, args, state, control, **_):
            peaks.update(self.stop())

        def stop(self):
            """Take the meter away, if it is there; its peaks."""
            running, self.meter = self.meter, None
            if running is None:
                return {}
            running.__exit__(None, None, None)
            return running.peaks

    watcher, train = Watch(), trainer.train

    @functools.wraps(train)
    def guarded(*arguments, **keywords):
        try:
            return train(*arguments, **keywords)
        finally:  # an interrupted step has no end: the trainer calls nothing after it
            watcher.stop()

    trainer.add_callback(watcher)
    trainer.train = guarded
    return peaks


def seal_checkpoints(trainer):
    """Have every checkpoint end with a manifest, so that a half-written one is never taken.

    transformers 5.23 writes a checkpoint's files one by one into its final folder, deletes the
    oldest checkpoint, and calls on_save last; its get_last_checkpoint goes by the folder's name
    alone. Before a checkpoint the disk is looked at, and the seconds of training are noted, so that
    a resumed run knows its whole time.
    """

    class Seal(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            self.start = time.perf_counter() - training_seconds(state)

        def on_step_end(self, args, state, control, model=None, **_):
            if control.should_save:
                check_disk(args.output_dir, model)
                seconds = time.perf_counter() - self.start
                state.log_history.append({"step": state.global_step, "seconds": seconds})

        def on_save(self, args, state, control, **_):
            checkpoint = f"checkpoint-{state.global_step}"
            fetch.write_manifest(Path(args.output_dir) / checkpoint)

    trainer.add_callback(Seal)
