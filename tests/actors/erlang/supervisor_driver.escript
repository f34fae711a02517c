#!/usr/bin/env escript
%% Drives a real `supervisor` by terms on standard input; answers each with one line.
%%
%%   {setup, Strategy, Restarts, Period, AutoShutdown}.      a new supervisor without children
%%   {start, Id, Restart, Significant, Plan}.  {stop, Id}.  {restart, Id}.  {delete, Id}.
%%   {plan, Id, Plan}.  {'end', Id, How}.  finish.
%%
%% The line: answer|what happened since|children in start order|specs active workers|state
-mode(compile).
-export([init/1, start_child/2, child/3]).

main(_) ->
    logger:set_primary_config(level, none),
    process_flag(trap_exit, true),
    ets:new(world, [named_table, public, ordered_set]),
    loop(undefined).

loop(Sup) ->
    case io:read("") of
        {ok, {setup, Strategy, Restarts, Period, Auto}} ->
            ets:delete_all_objects(world),
            Flags = #{strategy => Strategy, intensity => Restarts, period => Period, auto_shutdown => Auto},
            {ok, New} = supervisor:start_link(?MODULE, Flags),
            reply(ok, New),
            loop(New);
        {ok, finish} ->
            unlink_and_stop(Sup),
            reply(ok, Sup),
            loop(undefined);
        {ok, Step} ->
            Answer = try do(Sup, Step) catch exit:_ -> closed end,
            settle(Sup),
            reply(Answer, Sup),
            loop(Sup);
        _ ->
            ok
    end.

init(Flags) -> {ok, {Flags, []}}.

do(Sup, {start, Id, Restart, Significant, Plan}) ->
    case lists:keymember(Id, 1, supervisor:which_children(Sup)) of
        true -> ok;
        false -> ets:insert(world, {{plan, Id}, Plan})
    end,
    answer(supervisor:start_child(Sup, #{id => Id, start => {?MODULE, start_child, [Id, self()]},
                                         restart => Restart, significant => Significant}));
do(Sup, {stop, Id}) -> answer(supervisor:terminate_child(Sup, Id));
do(Sup, {restart, Id}) -> answer(supervisor:restart_child(Sup, Id));
do(Sup, {delete, Id}) -> answer(supervisor:delete_child(Sup, Id));
do(_, {plan, Id, Plan}) -> ets:insert(world, {{plan, Id}, Plan}), 'ok';
do(Sup, {'end', Id, How}) ->
    case lists:keyfind(Id, 1, supervisor:which_children(Sup)) of
        {_, Pid, _, _} when is_pid(Pid) ->
            Monitor = monitor(process, Pid),
            Pid ! {'end', How},
            receive {'DOWN', Monitor, _, _, _} -> ok end,
            forgotten(Sup, Id, Pid);
        _ -> ok
    end.

answer(ok) -> ok;
answer({ok, _}) -> ok;
answer({error, running}) -> 'ChildRunning';
answer({error, restarting}) -> 'ChildRestarting';
answer({error, not_found}) -> 'ChildNotFound';
answer({error, already_present}) -> 'ChildAlreadyPresent';
answer({error, {already_started, _}}) -> 'ChildAlreadyStarted';
answer({error, _}) -> 'ChildStartError'.

%% Wait until the supervisor has seen that Pid has ended.
forgotten(Sup, Id, Pid) ->
    try lists:keyfind(Id, 1, supervisor:which_children(Sup)) of
        {_, Pid, _, _} -> timer:sleep(1), forgotten(Sup, Id, Pid);
        _ -> ok
    catch exit:_ -> ok end.

%% Wait until nothing is about to be tried again; a supervisor that ended says so by its exit.
settle(Sup) ->
    try lists:any(fun({_, Pid, _, _}) -> Pid =:= restarting end, supervisor:which_children(Sup)) of
        true -> settle(Sup);
        false -> ok
    catch exit:_ -> receive {'EXIT', Sup, Reason} -> self() ! {'EXIT', Sup, Reason} end end.

unlink_and_stop(Sup) ->
    exit(Sup, shutdown),
    receive {'EXIT', Sup, Reason} -> self() ! {'EXIT', Sup, Reason} end.

%% -- children --------------------------------------------------------------------------------------

start_child(Id, Driver) ->
    case next(Id) of
        ok -> proc_lib:start_link(?MODULE, child, [Id, self(), Driver]);
        fail -> log("failed ~s crash", [Id]), {error, planned};
        ignore -> ignore
    end.

next(Id) ->
    case ets:lookup(world, {plan, Id}) of
        [{Key, [Next | Rest]}] -> ets:insert(world, {Key, Rest}), Next;
        _ -> ok
    end.

child(Id, Parent, _Driver) ->
    process_flag(trap_exit, true),
    log("started ~s", [Id]),
    proc_lib:init_ack(Parent, {ok, self()}),
    receive
        {'end', How} -> log("exited ~s ~s", [Id, How]), exit(How);
        {'EXIT', Parent, Reason} -> log("stopped ~s ~s", [Id, Reason]), exit(Reason)
    end.

log(Format, Args) ->
    ets:insert(world, {{line, erlang:unique_integer([monotonic])}, lists:flatten(io_lib:format(Format, Args))}).

%% -- answers ---------------------------------------------------------------------------------------

reply(Answer, Sup) ->
    Lines = [Line || [Line] <- ets:match(world, {{line, '_'}, '$1'})],
    ets:match_delete(world, {{line, '_'}, '_'}),
    State = receive {'EXIT', Sup, Reason} -> Reason after 0 -> running end,
    {Children, Counts} =
        case State of
            running -> {lists:reverse(supervisor:which_children(Sup)), supervisor:count_children(Sup)};
            _ -> {[], []}
        end,
    Shown = [io_lib:format("~s ~s", [Id, state(Pid)]) || {Id, Pid, _, _} <- Children],
    Numbers = [integer_to_list(proplists:get_value(Key, Counts, 0)) || Key <- [specs, active, workers]],
    io:format("~s|~s|~s|~s|~p~n",
              [Answer, lists:join(";", Lines), lists:join(";", Shown), lists:join(" ", Numbers), State]).

state(Pid) when is_pid(Pid) -> running;
state(undefined) -> stopped;
state(restarting) -> restarting.
