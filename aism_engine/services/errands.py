"""The errands: what a request to many has still to do, one target after the other."""

from collections.abc import Sequence

import msgspec

from aism_engine.model import messages as m
from aism_engine.model.codec import MalformedError, decode_request
from aism_engine.model.decisions.common import Decision, Scope
from aism_engine.model.decisions.errands import Errand, decide_errand, refuse_errand
from aism_engine.model.decisions.sending import child_id
from aism_engine.model.draft import Draft
from aism_engine.model.fleet import Fleet, Lookups
from aism_engine.services.base import Context
from aism_engine.services.hints import Hint
from aism_engine.services.intake import Intake, Limits

_ERRANDS = msgspec.json.Decoder(Errand)


class Errands(Intake[Errand]):
    """Does what was accepted for many: what is done leaves the queue in the same commit, so a crash leaves no hole and
    no double.
    """

    name = "errands"

    def __init__(self, context: Context, hint: Hint, limits: Limits) -> None:
        super().__init__(context, hint, "errands", limits, _read)
        self._requests: dict[str, m.Request | None] = {}

    async def look_up(self, fleet: Fleet, messages: Sequence[Errand]) -> Lookups:
        groups = {errand.group_id for errand in messages}
        self._requests = {
            group_id: self._requests.get(group_id) or await self._request(group_id) for group_id in groups
        }
        named = {child_id(each.group_id, each.agent_id) for each in messages if each.agent_id is not None}
        named |= {each.command_id for each in messages if each.command_id is not None}
        return Lookups(commands=await self._store.commands(named - fleet.commands.keys()))

    async def _request(self, group_id: str) -> m.Request | None:
        raw = await self._store.group_request(group_id)
        try:
            return None if raw is None else decode_request(raw)
        except MalformedError:
            return None

    def decide(self, draft: Draft, message: Errand, raw: bytes) -> Decision:  # noqa: ARG002
        return decide_errand(draft, self._rules, message, self._requests.get(message.group_id))

    def bury(self, draft: Draft, error: MalformedError, raw: bytes) -> Decision:
        """Give up on one target: a key of its has the wrong type. What is no errand is dropped with its reason."""
        decision = Decision("errand")
        try:
            errand = _read(raw)
        except MalformedError:
            Scope(draft, self._rules, decision, "engine").bury(error.code, error.reason, raw, source="errands")
            return decision
        scope = Scope(draft, self._rules, decision, "operator", errand.group_id)
        refuse_errand(scope, errand, error.code, error.reason)
        return decision


def _read(raw: bytes) -> Errand:
    try:
        return _ERRANDS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedError("invalid_message", str(error)) from None
