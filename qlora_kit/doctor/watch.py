"""A watch over the first steps of a real training: the adapter moves, and the base does not."""

from qlora_kit.doctor.findings import error, report
from qlora_kit.errors import KitError

STEPS = 3  # a warm-up's first step has rate 0; after the second B has moved, and A gets a gradient
LIMIT = 20  # steps, also where rates stay at 0 or a gradient scaler skips some


def watch(trainer, budget=None):
    """Check the first steps of `trainer.train()`, and stop it by a KitError if something is wrong.

    The loss of each batch must be a finite number, each B must get a gradient that is finite and
    not zero, and must move; the frozen base must not. budget: the bytes of GPU memory that torch
    may allocate at most, if given. Three steps are looked at (those of rate 0 do not count), then
    one line says so. It works with accumulated gradients and for a resumed run. The message of the
    KitError is the report of the findings.
    """
    import transformers

    watched = _Watch(trainer, budget)

    class Callback(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            watched.begin()

        def on_pre_optimizer_step(self, args, state, control, **_):
            watched.before_step()

        def on_step_end(self, args, state, control, **_):
            watched.after_step()

        def on_train_end(self, args, state, control, **_):
            watched.end()

    training_step = trainer.training_step

    def step(*args, **kwargs):
        loss = training_step(*args, **kwargs)
        watched.loss(loss)
        return loss

    trainer.training_step = step
    trainer.add_callback(Callback())


def _stop(found):
    if found:
        raise KitError(report("the first steps", found))


class _Watch:
    def __init__(self, trainer, budget):
        self.trainer, self.budget, self.on = trainer, budget, False

    def begin(self):
        from qlora_kit.doctor import layers
        from qlora_kit.doctor.trained import no_adapter

        model = self.trainer.model
        if self.trainer.is_deepspeed_enabled or self.trainer.is_fsdp_enabled:
            print("The first steps are not watched: the weights are spread over several devices.")
            return
        self.pairs = list(layers.factors(model))
        if not self.pairs:
            _stop([no_adapter()])
        frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
        self.frozen = [(n, p) for n, p in frozen if not p.is_meta]  # weights on a disk are left out
        self.base = [checksum(p) for _, p in self.frozen]
        self.start = [checksum(b) for _, (_, b) in self.pairs]
        self.without = {b[0] for _, b in self.pairs}  # those that had no gradient yet
        self.on, self.steps, self.counted = True, 0, 0

    def loss(self, loss):
        from qlora_kit.doctor.model import loss_findings

        if self.on:
            _stop([*loss_findings(loss.item())])

    def before_step(self):
        """The gradients of a step, accumulated and clipped, before the optimizer uses them."""
        from qlora_kit.doctor.model import broken_gradient, has_gradient

        if not self.on:
            return
        self.rate = max(group["lr"] for group in self.trainer.optimizer.param_groups)
        with_gradient = [name for _, (name, b) in self.pairs if has_gradient(b)]
        self.without -= set(with_gradient)
        broken = sum(b.grad is not None and not b.grad.isfinite().all() for _, (_, b) in self.pairs)
        # float16's gradient scaler tries out large factors, and skips a step that overflows
        if broken and self.trainer.accelerator.scaler is None:
            _stop([broken_gradient(broken, len(self.pairs))])

    def after_step(self):
        if self.on:
            self.steps += 1
            skipped = self.trainer.accelerator.optimizer_step_was_skipped
            self.counted += self.rate > 0 and not skipped
            if self.counted == STEPS or self.steps == LIMIT:
                self.end()

    def end(self):
        if not self.on or not self.steps:
            return
        self.on = False
        _stop([*self.findings()])
        print(
            f"Watched {self.steps} steps: the loss is a number, all {len(self.pairs)} B matrices "
            "get gradients and move, and the base stays as it was."
        )

    def findings(self):
        from qlora_kit.doctor.model import no_gradient

        without = [pair for pair in self.pairs if pair[1][0] in self.without]
        if without:
            yield no_gradient(without, len(self.pairs))
        still = [
            name
            for (_, (name, b)), old in zip(self.pairs, self.start, strict=True)
            if checksum(b) == old and name not in self.without
        ]
        if still:
            yield self.not_moved(still)
        changed = [
            name
            for (name, p), old in zip(self.frozen, self.base, strict=True)
            if checksum(p) != old
        ]
        if changed:
            yield error(
                f"{len(changed)} frozen parameters have changed, such as {changed[0]}",
                "The adapter would fit no base that anybody can load.",
                "load the model anew, and run no merge and no answer in eval mode without "
                "models.guard_cpu_repacking(model)",
            )
        yield from self.memory()

    def not_moved(self, still):
        title = f"{len(still)} of {len(self.pairs)} B matrices did not move in {self.steps} steps"
        if not self.counted:
            return error(
                title,
                "The learning rate was 0 all the time, or each step was skipped.",
                "set SFTConfig(learning_rate=2e-4), and fewer warmup_steps",
            )
        return error(
            title,
            "They got gradients, but the optimizer does not write to them: it holds other "
            "parameters, or the update is rounded away.",
            "build the trainer after the adapter is on, without an optimizer of your own, and "
            "quirks.adapters_to_float32(trainer.model) after that",
        )

    def memory(self):
        import torch

        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        if self.budget is not None and peak > self.budget:
            yield error(
                f"the steps took {peak / 2**30:.2f} GiB, and the budget is "
                f"{self.budget / 2**30:.2f}",
                "A longer batch later on would end with CUDA out of memory.",
                "a smaller per_device_train_batch_size or max_length, with more "
                "gradient_accumulation_steps",
            )


def checksum(tensor):
    """The sum of a tensor's bytes, taken as 32-bit numbers: any change that training makes, and a
    repacking, gives another. It reads each byte once, where the tensor lies."""
    import torch

    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if data.storage_offset() % 4:
        data = data.clone()
    whole = len(data) // 4 * 4
    numbers, rest = data[:whole].view(torch.int32), data[whole:]
    return int(numbers.sum(dtype=torch.int64)) + int(rest.sum(dtype=torch.int64))
