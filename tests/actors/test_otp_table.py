"""Every statement has a test, every case of OTP's suite is accounted for, and the page says so."""

from __future__ import annotations

from itertools import chain

import pytest

from tests.actors.otp import BEGIN, END, NOT_HERE, PAGE, SCALE_CASES, STATEMENTS, WRITE, proofs, statement, table

SUITE = """
    sup_start_normal sup_start_ignore_init sup_start_ignore_child sup_start_ignore_temporary_child
    sup_start_ignore_temporary_child_start_child sup_start_ignore_temporary_child_start_child_simple
    sup_start_ignore_permanent_child_start_child_simple sup_start_error_return sup_start_fail
    sup_start_child_returns_error sup_start_restart_child_returns_error sup_start_child_returns_error_simple
    sup_start_map sup_start_map_simple sup_start_map_faulty_specs
    sup_stop_infinity sup_stop_timeout sup_stop_timeout_dynamic sup_stop_brutal_kill sup_stop_brutal_kill_dynamic
    sup_stop_race sup_stop_non_shutdown_exit_dynamic sup_stop_manual sup_stop_manual_timeout
    external_start_no_progress_log permanent_normal transient_normal temporary_normal
    permanent_shutdown transient_shutdown temporary_shutdown faulty_application_shutdown
    permanent_abnormal transient_abnormal temporary_abnormal
    one_for_one one_for_one_escalation one_for_all one_for_all_escalation one_for_all_other_child_fails_restart
    simple_one_for_one simple_one_for_one_shutdown simple_one_for_one_extra simple_one_for_one_escalation
    simple_one_for_one_corruption simple_one_for_one_restart_ignore
    rest_for_one rest_for_one_escalation rest_for_one_other_child_fails_restart
    nonsignificant_temporary nonsignificant_transient significant_temporary significant_transient significant_simple
    significant_bystander significant_escalation significant_upgrade_never_any significant_upgrade_any_never
    significant_upgrade_never_all significant_upgrade_all_never significant_upgrade_any_all
    significant_upgrade_all_any significant_upgrade_child
    child_adm child_adm_simple extra_return child_specs child_specs_map sup_flags multiple_restarts auto_hibernate
    child_unlink tree count_children count_children_supervisor count_restarting_children get_callback_module
    do_not_save_start_parameters_for_temporary_children do_not_save_child_specs_for_temporary_children
    simple_one_for_one_scale_many_temporary_children temporary_bystander simple_global_supervisor
    hanging_restart_loop hanging_restart_loop_rest_for_one hanging_restart_loop_simple
    code_change code_change_map code_change_simple code_change_simple_map order_of_children
    scale_start_stop_many_children scale_mass_exit_children format_log_1 format_log_2
    already_started_outside_supervisor which_children which_children_simple_one_for_one
"""
"""All cases of OTP 28's `supervisor_SUITE`."""


def test_every_statement_has_a_test() -> None:
    assert list(proofs()) == list(STATEMENTS) == list(range(1, 101))


def test_every_case_of_otps_suite_is_accounted_for() -> None:
    named = set(chain.from_iterable(said.cases for said in STATEMENTS.values()))
    assert named | set(SCALE_CASES) | set(NOT_HERE) == set(SUITE.split())
    assert not named & set(NOT_HERE)


def test_the_page_names_exactly_the_statements_and_tests_that_exist() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown == table(), f"bring the table up to date: {WRITE}"


def test_a_test_names_no_case_that_is_not_its_statements() -> None:
    with pytest.raises(ValueError, match="does not go back to"):
        statement(59, "one_for_all")
    with pytest.raises(KeyError):
        statement(101)
