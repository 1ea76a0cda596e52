"""The dispatcher: what operators ask for, from the tail of the request queue."""

from collections.abc import Sequence

from aism_engine.model import messages as m
from aism_engine.model.codec import MalformedError, decode_request
from aism_engine.model.decisions.common import Decision
from aism_engine.model.decisions.requests import SOURCE, bury_request, decide_request
from aism_engine.model.fleet import Draft, Fleet, Lookups
from aism_engine.services.base import Context
from aism_engine.services.hints import Hint
from aism_engine.services.intake import Intake, Limits


class Dispatcher(Intake[m.Request]):
    """Accepts requests, or says why not. Accepted means: the record is committed, the command is on its way."""

    name = "dispatcher"

    def __init__(self, context: Context, hint: Hint, limits: Limits) -> None:
        super().__init__(context, hint, SOURCE, limits, decode_request)

    async def look_up(self, fleet: Fleet, messages: Sequence[m.Request]) -> Lookups:
        strangers = {message.payload.agent_id for message in messages if message.payload.agent_id not in fleet.agents}
        asked = {message.id for message in messages if isinstance(message, m.Send) and message.id not in fleet.commands}
        return Lookups(await self._store.sightings(strangers), await self._store.commands(asked))

    def decide(self, draft: Draft, message: m.Request, raw: bytes) -> Decision:
        return decide_request(draft, self._rules, message, raw)

    def bury(self, draft: Draft, error: MalformedError, raw: bytes) -> Decision:
        return bury_request(draft, self._rules, error, raw)
