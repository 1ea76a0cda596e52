"""Hypothesis strategies with few names and few values, so that effects often touch the same keys."""

import hypothesis.strategies as st

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import Decision

agents = st.sampled_from(["a", "b"])
ids = st.sampled_from(["m1", "m2"])
members = st.sampled_from(["command:c1", "command:c2"])
scores = st.sampled_from([1.0, 2.5, 1_800_000_000.123456])
texts = st.sampled_from(["", "x", "ü"])
bodies = st.sampled_from([b"{}", b"\xff\x00"])
messages = st.sampled_from([(1, b"1"), (1, b"2"), (50, b""), (90, b"\xff"), (5000, b"4"), (5000, b"5")]).map(
    lambda drawn: b"." * (drawn[0] - len(drawn[1])) + drawn[1]
)
"""The last two differ only after the part that a digest covers."""
facts = st.builds(
    fx.Fact,
    event=st.sampled_from(["state_changed", "dead_letter_added"]),
    at=texts,
    by=st.sampled_from(["agent", "engine"]),
    agent_id=agents,
    cause=ids,
)
dead_letters = st.builds(
    fx.DeadLetter,
    code=texts,
    reason=texts,
    source=texts,
    raw=bodies,
    digest=texts,
    size=st.just(3),
    agent_id=st.none() | agents,
)
fields = st.dictionaries(st.sampled_from(["state", "since"]), texts, min_size=1)
records = st.builds(
    AgentRecord,
    agent_id=agents,
    state=st.sampled_from(["inbox", "idle"]),
    since=scores,
    first_seen_at=scores,
    reason=texts,
)
events = st.sampled_from([{}, {"line": "break\n"}, AgentRecord(agent_id="ü", state="s", since=0.0, first_seen_at=0.0)])
effects = st.one_of(
    st.builds(fx.SaveAgent, records),
    st.builds(fx.IndexAgent, agents),
    st.builds(fx.SetState, agents, st.sampled_from(["inbox", "idle"])),
    st.builds(fx.SaveMetadata, agents, fields),
    st.builds(fx.SaveMeasurements, agents, st.dictionaries(st.sampled_from(["x", "y"]), scores, min_size=1)),
    st.builds(fx.ForgetAgent, agents),
    st.builds(fx.SaveCommand, ids, fields | st.builds(lambda body: {"body": body}, bodies), st.none() | st.just(60.0)),
    st.builds(fx.PushCommand, agents, bodies),
    st.builds(fx.PushCancel, agents, bodies),
    st.builds(fx.ReleaseCommand, agents, ids),
    st.builds(fx.WithdrawCommand, agents, ids, st.none() | bodies),
    st.builds(fx.SaveGroup, ids, fields, st.none() | st.just(60.0)),
    st.builds(fx.AddFanoutTargets, st.lists(bodies, min_size=1, max_size=3)),
    st.builds(fx.SaveHold, st.sampled_from([{"fleet": ""}, {"fleet": "pause"}])),
    st.builds(fx.SaveRequestReply, ids, bodies, st.just(60.0)),
    st.builds(fx.DeliverMail, agents, bodies),
    st.builds(fx.DeferMail, agents, bodies),
    st.builds(fx.ReleaseMail, agents),
    st.builds(fx.SendReply, st.none() | agents, ids, bodies, st.just(60.0)),
    st.builds(fx.SetDeadline, members, scores),
    st.builds(fx.ClearDeadline, members),
    st.builds(fx.Publish, st.sampled_from(["state_changes", "errors", "measurements"]), events),
    facts,
    dead_letters,
    st.builds(fx.ExpectScore, agents, scores),
    st.builds(fx.ExpectDeadline, members, scores),
)
some_decisions = st.lists(
    st.builds(lambda found: Decision("any", effects=found), st.lists(effects, max_size=4)), max_size=3
).map(tuple)
some_message_ids = st.lists(st.tuples(agents, ids), max_size=2).map(tuple)
positions = st.sampled_from(["in step"] * 8 + ["out of step", "fenced", "twin"])
"""How a commit relates to the ledger and the epoch. A `twin` has the leader's epoch number, as after a failover."""
limits = st.sampled_from([60, 4999, 10_000])
