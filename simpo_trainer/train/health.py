"""Watches the numbers of a run while it trains, tells what looks wrong, and stops a run whose model is being ruined."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..health.limits import limit
from ..health.pair_rules import PAIR_RULES
from ..health.sample_rules import sample_findings
from ..health.setting_rules import Planned, planned_findings
from ..health.training_rules import TRAINING_RULES, Logged
from ..health.view import Advice, Aim, Figures, View, training_figures
from ..log import get_logger
from ..record.findings import TRAINING, Finding
from ..record.metric_table import ACCURACY, CHOSEN, REJECTED
from ..record.reader import PER_TOKEN
from .rate import has_adapter
from .same_rows import ROWS
from .trackers import send_finding

logger = get_logger(__name__)

_LOGGED = {"chosen": CHOSEN, "rejected": REJECTED, "accuracy": ACCURACY}
# Of these the settings have warned already, before the model was loaded.
_TOLD_EARLY = {"tiny beta"}
# The same fall of chosen answers, told by what the rejected ones did meanwhile: one kind of finding.
_FALLS = {"chosen falls", "both fall", "margin by rejected"}


class HealthMonitor(TrainerCallback, ExportableState):
    """Applies the rules of :mod:`~simpo_trainer.health` on the main process, and keeps what they found.

    A finding is told once, and again only when it has grown worse by the factor of the limits' table. It stands in the
    manifest from then on. A run that goes on from a checkpoint goes on with what was told before it.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.collapse: str | None = None
        # The figures of the training logs so far: a long run has too many to make them anew at each.
        self._of_logs: list[Figures] = []
        self._forget()

    def _forget(self) -> None:
        self.findings: list[dict[str, Any]] = []
        # For each kind of finding the amount that was told.
        self.told: dict[str, float] = {}
        # For each evaluation set its figures: step, chosen, rejected, accuracy.
        self.evaluated: dict[str, list[list[float]]] = {}
        # The figures of the first samples.
        self.first_samples: dict[str, float] | None = None

    def state(self) -> dict[str, Any]:
        """Returns what was found and measured, as transformers wants the state of a callback."""
        kept = {name: getattr(self, name) for name in ("findings", "told", "evaluated", "first_samples")}
        return {"args": {}, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collapse, self._of_logs = None, []
        if not state.global_step:
            self._forget()
        if not self._manifest:
            return
        for name, measured in self._manifest["held_out"].items():
            if measured.get("start") and not self.evaluated.get(name):
                self._keep(name, 0, measured["start"])
        self._tell(planned_findings(self._planned()), quietly=_TOLD_EARLY)
        for name in self.evaluated:
            self._tell(self._of_pairs(name))
        self.trainer.run_record.record_findings(self.findings)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "loss" not in (logs or {}):
            return
        found = [*self._of_training(state), *self._of_pairs(TRAINING)] if self._manifest else []
        self._act(found, control)

    def evaluation(self, name: str, step: int, figures: Mapping[str, float]) -> None:
        """Look at the figures of an evaluation set; every process must call it.

        Args:
            name: of the set.
            step: of the model.
            figures: means over its pairs, log-probabilities in nats per token.
        """
        found: list[Finding] = []
        earlier = self.evaluated.get(name) or [[-1]]
        if self._manifest and step > earlier[-1][0]:
            self._keep(name, step, figures)
            found = self._of_pairs(name)
        self._act(found, self.trainer.control)

    def samples(self, step: int, figures: dict[str, float]) -> None:
        """Look at the figures of the answers of a step; every process must call it."""
        found: list[Finding] = []
        if self._manifest and self.first_samples is not None:
            found = sample_findings(step, self.first_samples, figures, self._advice())
        self.first_samples = self.first_samples or figures
        self._act(found, self.trainer.control)

    # ---- What the rules get ----

    @property
    def _manifest(self) -> dict[str, Any]:
        """Returns the facts of the run; empty on other processes than the main one."""
        return self.trainer.run_record.manifest

    def _keep(self, name: str, step: int, figures: Mapping[str, float]) -> None:
        row = [step, *(figures[each] for each in _LOGGED)]
        self.evaluated.setdefault(name, []).append(row)

    def _of_pairs(self, where: str) -> list[Finding]:
        """Returns what the rules on pairs find."""
        if where == TRAINING:
            figures, pairs = self._training_figures(), ROWS
        else:
            figures = [Figures(int(step), *values) for step, *values in self.evaluated[where]]
            pairs = int(self._manifest["held_out"].get(where, {}).get("pairs") or 0)
        if not figures:
            return []
        started = figures[0].step == 0
        view = View(where, figures[-1].step, self._steps, figures, started, pairs, self._aim(), self._advice())
        return [found for rule in PAIR_RULES if (found := rule(view))]

    def _training_figures(self) -> list[Figures]:
        """Returns the figures of the training, behind those of the untrained model; none in another unit."""
        if self._manifest["log_prob_unit"] != PER_TOKEN or self.trainer.own_loss:
            return []
        start = self._manifest["start"]
        first = [Figures.of(0, {name: start[key] for name, key in _LOGGED.items()})] if start else []
        log = [
            entry for entry in self._training_log(self.trainer.state) if all(key in entry for key in _LOGGED.values())
        ]
        self._of_logs += training_figures(log, _LOGGED, ROWS, since=len(self._of_logs))
        return [*first, *self._of_logs]

    def _of_training(self, state: TrainerState) -> list[Finding]:
        start = (self._manifest["start"] or {}).get("preference_loss")
        warmup = self.trainer.args.get_warmup_steps(self._steps)
        log = self._training_log(state)
        logged = Logged(log, self._steps, warmup, start, "preference_loss", self._advice())
        return [found for rule in TRAINING_RULES if (found := rule(logged))]

    @staticmethod
    def _training_log(state: TrainerState) -> Sequence[dict[str, Any]]:
        return [entry for entry in state.log_history if "loss" in entry]

    @property
    def _steps(self) -> int:
        return int(self.trainer.state.max_steps)

    def _aim(self) -> Aim | None:
        trainer = self.trainer
        if trainer.target_margin is None or trainer.log_prob_unit != PER_TOKEN or trainer.own_loss:
            return None
        return Aim(trainer.target_margin, trainer.args.objective.reward_scale)

    def _advice(self) -> Advice:
        facts = self._manifest
        return Advice(
            learning_rate=facts["training"]["learning_rate"],
            sft_weight=facts[facts["method"]].get("sft_weight"),
            epochs=facts["batch"]["epochs"],
        )

    def _planned(self) -> Planned:
        facts = self._manifest
        aim = self._aim()
        sets = facts["data"]["sets"]
        held_out = {name: each for name, each in sets.items() if each["trained_on"] is not None}
        return Planned(
            beta=aim.beta if aim else None,
            batch=facts["batch"]["global"],
            learning_rate=facts["training"]["learning_rate"],
            weights=facts["model"]["parameters"],
            adapts=has_adapter(self.trainer.model),
            rows=sets["train"]["rows"],
            repeated=sets["train"]["repeated"],
            held_out={name: (each["rows"], each["trained_on"]) for name, each in held_out.items()},
        )

    # ---- What follows ----

    def _tell(self, found: Sequence[Finding], quietly: set[str] | None = None) -> list[Finding]:
        """Log and keep what is new, or has grown worse, and return it."""
        news = [each for each in found if self._is_news(each)]
        for each in news:
            self.told[_kind(each)] = each.amount
            self.findings.append(each.as_json())
            if each.rule not in (quietly or ()):
                logger.warning(f"health: {each.line}")
            send_finding(self.trainer, each.line, each.step)
        return news

    def _is_news(self, found: Finding) -> bool:
        told = self.told.get(_kind(found))
        return told is None or (found.amount > limit("worse") * told)

    def _act(self, found: Sequence[Finding], control: TrainerControl) -> None:
        """Tell and record findings, and stop the run where the model is being ruined; every process must call it."""
        news = self._tell(found)
        if news:
            self.trainer.run_record.record_findings(self.findings)
        if not getattr(self.trainer, "shared", self.trainer.args).stop_on_collapse:
            return
        answer = [next((each.line for each in news if each.collapse), None)]
        if self.trainer.accelerator.num_processes > 1:
            broadcast_object_list(answer)
        if answer[0] and self.trainer.is_in_train:
            self.collapse = answer[0]
            self.trainer.interrupted = True
            control.should_training_stop = control.should_save = True


def _kind(found: Finding) -> str:
    return "a fall" if found.rule in _FALLS else found.rule
