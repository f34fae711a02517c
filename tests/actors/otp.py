"""OTP's supervisor in a hundred numbered statements, and which tests prove each.

With each go the cases of `supervisor_SUITE` behind it and how we differ. `python -m tests.actors.otp`
writes the table of `docs/supervision.md`; `test_otp_table.py` holds the two together.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tests.actors

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")


@dataclass(frozen=True)
class Statement:
    """What OTP does; `cases` of its own suite show it, `deviation` says what it is here instead."""

    text: str
    cases: tuple[str, ...] = ()
    deviation: str = ""


WRITE = "python -m tests.actors.otp"


def _statement(text: str, cases: str = "", deviation: str = "") -> Statement:
    return Statement(text, tuple(cases.split()), deviation)


STATEMENTS: dict[int, Statement] = {
    1: _statement("flags have defaults", "", "3 restarts in 5 s, as in Elixir"),
    2: _statement("a spec has defaults", "sup_start_map", "functions are transient: they end by returning"),
    3: _statement("unknown keys", "sup_start_map_faulty_specs sup_flags", "a TypeError; OTP ignores them"),
    4: _statement("a bad spec is refused before anything starts", "child_specs child_specs_map"),
    5: _statement("intensity and period are checked", "sup_flags"),
    6: _statement("strategy and auto_shutdown are checked", "sup_flags"),
    7: _statement("an id twice refuses the whole start", "child_specs"),
    8: _statement("significant and permanent exclude each other", "child_specs_map"),
    9: _statement(
        "significant needs auto_shutdown",
        "child_specs_map significant_upgrade_never_any significant_upgrade_any_never significant_upgrade_never_all "
        "significant_upgrade_all_never",
    ),
    10: _statement(
        "simple_one_for_one: one template, nothing significant",
        "child_specs significant_simple",
        "a DynamicSupervisor takes any spec, as in Elixir",
    ),
    11: _statement("specs are checked without starting", "child_specs"),
    12: _statement("an id is any term; order does not depend on it", "order_of_children", "any hashable value"),
    13: _statement("children start one after the other", "order_of_children"),
    14: _statement("the start returns when all are ready"),
    15: _statement("a failed start stops the earlier ones, in reverse", "faulty_application_shutdown"),
    16: _statement("later ones are never started"),
    17: _statement("a failed first start is not retried"),
    18: _statement("`ignore`: the spec stays, without a child", "sup_start_ignore_child"),
    19: _statement(
        "`ignore` of a temporary child: nothing stays",
        "sup_start_ignore_temporary_child sup_start_ignore_temporary_child_start_child",
    ),
    20: _statement(
        "`ignore` under simple_one_for_one: nothing stays",
        "sup_start_ignore_temporary_child_start_child_simple sup_start_ignore_permanent_child_start_child_simple",
    ),
    21: _statement("a supervisor's own `ignore`", "sup_start_ignore_init"),
    22: _statement("an init that fails leaves nothing running", "sup_start_error_return sup_start_fail"),
    23: _statement("extra information of a start", "extra_return simple_one_for_one_extra", "it is `ref.value`"),
    24: _statement("an end right after the ack is seen"),
    25: _statement("each start is told", "external_start_no_progress_log"),
    26: _statement("trees nest", "tree"),
    27: _statement("start_child appends", "rest_for_one"),
    28: _statement("start_child with the id of a running child", "child_adm"),
    29: _statement("start_child with the id of a stopped child", "child_adm hanging_restart_loop"),
    30: _statement(
        "a failed start_child leaves nothing", "sup_start_child_returns_error sup_start_child_returns_error_simple"
    ),
    31: _statement("`already_started` of a start function", "already_started_outside_supervisor", "it is NameTaken"),
    32: _statement("an invalid spec is the caller's error", "child_specs"),
    33: _statement("terminate_child keeps the spec", "child_adm"),
    34: _statement("terminate_child is idempotent", "child_adm extra_return"),
    35: _statement("terminate_child counts nothing and touches nobody", "significant_bystander"),
    36: _statement(
        "terminating by process", "child_adm child_adm_simple", "a reference knows its supervisor: any may be stopped"
    ),
    37: _statement("restart_child of a stopped child only", "child_adm hanging_restart_loop"),
    38: _statement("a failed restart_child keeps the spec", "sup_start_restart_child_returns_error"),
    39: _statement("restart_child that is ignored"),
    40: _statement("delete_child of a stopped child only", "child_adm hanging_restart_loop"),
    41: _statement(
        "by id under simple_one_for_one",
        "child_adm_simple",
        "children of a DynamicSupervisor have ids and may be stopped by them; one that ended is not found",
    ),
    42: _statement("which_children: newest first", "child_adm tree rest_for_one"),
    43: _statement("which_child", "which_children which_children_simple_one_for_one", "`sup.child(id)`"),
    44: _statement("count_children", "count_children count_children_supervisor hanging_restart_loop"),
    45: _statement("count_children, dynamic", "count_restarting_children", "specs counts children, as in Elixir"),
    46: _statement("a spec can be read back", "sup_start_map sup_start_map_simple"),
    47: _statement("a call to a supervisor that is gone fails", "child_adm"),
    48: _statement("a restarted supervisor has its static children", "tree"),
    49: _statement("a temporary child is forgotten at its end", "do_not_save_child_specs_for_temporary_children"),
    50: _statement(
        "arguments of temporary children are not kept",
        "do_not_save_start_parameters_for_temporary_children simple_one_for_one_corruption",
        "a tree keeps the specs it was written with, for its own restart",
    ),
    51: _statement("permanent", "permanent_normal permanent_shutdown permanent_abnormal"),
    52: _statement("transient", "transient_normal transient_shutdown transient_abnormal"),
    53: _statement("temporary", "temporary_normal temporary_shutdown temporary_abnormal"),
    54: _statement("abnormal ends are reported", "", "every end is told, with its reason"),
    55: _statement("a restarted child keeps its place", "one_for_one order_of_children"),
    56: _statement("a restart uses the original arguments"),
    57: _statement("a dynamic child restarts with its own arguments", "simple_one_for_one simple_one_for_one_extra"),
    58: _statement("a restart that is ignored", "simple_one_for_one_restart_ignore"),
    59: _statement("one_for_one", "one_for_one"),
    60: _statement("one_for_all", "one_for_all"),
    61: _statement("rest_for_one", "rest_for_one order_of_children"),
    62: _statement("temporary bystanders are dropped", "temporary_bystander"),
    63: _statement("a group restart starts every kept spec"),
    64: _statement("each by its own shutdown rule"),
    65: _statement("a group restart counts once"),
    66: _statement("one_for_all: another one does not start", "one_for_all_other_child_fails_restart"),
    67: _statement(
        "rest_for_one: another one does not start",
        "rest_for_one_other_child_fails_restart hanging_restart_loop_rest_for_one",
        'those that wait behind it show "restarting", not `undefined`: they are to come back',
    ),
    68: _statement("ends that the supervisor caused do not count", "temporary_bystander significant_bystander"),
    69: _statement("a sibling that dies during the group's stop", "sup_stop_race"),
    70: _statement("one restart too many ends it", "one_for_one"),
    71: _statement("as many as allowed are allowed", "one_for_one"),
    72: _statement("intensity 0"),
    73: _statement("the window slides", "multiple_restarts"),
    74: _statement("the count is shared", "one_for_one"),
    75: _statement(
        "a failed attempt counts",
        "one_for_one_escalation one_for_all_escalation rest_for_one_escalation simple_one_for_one_escalation",
    ),
    76: _statement(
        "requests are served between attempts",
        "hanging_restart_loop hanging_restart_loop_rest_for_one hanging_restart_loop_simple",
    ),
    77: _statement("terminate_child calls a restart off", "hanging_restart_loop"),
    78: _statement("restarts are immediate", "", "a backoff may delay them; the window's clock stands still meanwhile"),
    79: _statement("giving up names the child"),
    80: _statement(
        "giving up is `shutdown` to the parent", "", "at the root GaveUp is raised; inside a tree it is as in OTP"
    ),
    81: _statement("nested limits multiply"),
    82: _statement("a restarted supervisor has an empty window"),
    83: _statement("children stop in reverse, one by one", "order_of_children"),
    84: _statement("shutdown in seconds", "sup_stop_timeout"),
    85: _statement(
        "brutal_kill", "sup_stop_brutal_kill sup_stop_brutal_kill_dynamic", "`shutdown=0` cancels and waits"
    ),
    86: _statement("infinity", "sup_stop_infinity", "`stop_deadline` bounds the whole tree"),
    87: _statement("simple_one_for_one stops all at once", "simple_one_for_one_shutdown sup_stop_timeout_dynamic"),
    88: _statement("ends during the shutdown", "sup_stop_race sup_stop_non_shutdown_exit_dynamic"),
    89: _statement("a child that unlinked", "child_unlink", "a task cannot detach; one that swallows its cancellation"),
    90: _statement("the true reason of an end in the same instant"),
    91: _statement("no grandchild outlives its supervisor"),
    92: _statement("nothing is restarted after the shutdown began"),
    93: _statement("children that are down are skipped", "hanging_restart_loop"),
    94: _statement("the end is `shutdown`, and awaited", "sup_start_normal sup_stop_manual sup_stop_manual_timeout"),
    95: _statement("unexpected messages", "child_unlink", "a supervisor has no mailbox: nothing can be sent to it"),
    96: _statement("any_significant", "significant_temporary significant_transient"),
    97: _statement("all_significant", "significant_temporary significant_transient"),
    98: _statement("a crash of a significant child", "significant_transient"),
    99: _statement(
        "ends that the supervisor caused, and others' ends",
        "significant_bystander nonsignificant_temporary nonsignificant_transient",
    ),
    100: _statement("it chains", "significant_escalation"),
}

SCALE_CASES = (
    "scale_start_stop_many_children",
    "scale_mass_exit_children",
    "simple_one_for_one_scale_many_temporary_children",
)
"""Cases of many children at once: `test_otp_statements.py` has a test for each."""

NOT_HERE = {
    "auto_hibernate": "tasks do not hibernate",
    "code_change": "flags and specs cannot be changed at run time",
    "code_change_map": "flags and specs cannot be changed at run time",
    "code_change_simple": "flags and specs cannot be changed at run time",
    "code_change_simple_map": "flags and specs cannot be changed at run time",
    "significant_upgrade_any_all": "flags and specs cannot be changed at run time",
    "significant_upgrade_all_any": "flags and specs cannot be changed at run time",
    "significant_upgrade_child": "flags and specs cannot be changed at run time",
    "format_log_1": "the layout of OTP's log",
    "format_log_2": "the layout of OTP's log",
    "get_callback_module": "there are no callback modules",
    "simple_global_supervisor": "there are no globally registered names",
}
"""Cases of `supervisor_SUITE` (OTP 28) that have no meaning here, and why."""

_proofs: dict[int, list[str]] = {}


def statement(number: int, *cases: str) -> Callable[[F], F]:
    """Mark a test as a proof of statement `number`; `cases` are those of OTP's suite that it repeats."""
    unknown = set(cases) - set(STATEMENTS[number].cases)
    if unknown:
        raise ValueError(f"statement {number} does not go back to {unknown}")

    def mark(test: F) -> F:
        _proofs.setdefault(number, []).append(f"{test.__module__.rpartition('.')[2]}.{test.__name__}")
        return test

    return mark


def proofs() -> dict[int, list[str]]:
    """The tests of each statement, by module and name."""
    for module in pkgutil.iter_modules(tests.actors.__path__):
        if module.name.startswith("test_"):
            importlib.import_module(f"tests.actors.{module.name}")
    return {number: sorted(set(_proofs[number])) for number in sorted(_proofs)}


def table() -> str:
    """The table of `docs/supervision.md`."""
    rows = ["| | OTP | its own cases | our test | here, where it differs |", "|---|---|---|---|---|"]
    for number, names in proofs().items():
        said = STATEMENTS[number]
        cases = ", ".join(f"`{case}`" for case in said.cases)
        shown = ", ".join(f"`{name}`" for name in names)
        rows.append(f"| {number} | {said.text} | {cases} | {shown} | {said.deviation} |")
    return "\n".join(rows)


BEGIN, END = f"<!-- statements: {WRITE} -->\n", "\n<!-- end of statements -->"
PAGE = Path(__file__).parents[2] / "docs" / "supervision.md"


def write() -> None:
    """Bring the table of the page up to date."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    # The module that the tests register with is another than this `__main__`.
    importlib.import_module("tests.actors.otp").write()
