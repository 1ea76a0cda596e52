#!/usr/bin/env bash
# An agent on redis-cli alone, without registration: sends heartbeats, takes commands, and answers them.
#
#   examples/bare_agent.sh architect-a1b2c3
#   aism-engine send architect-a1b2c3 greet --payload '{"name": "Ada"}' --wait
set -euo pipefail

agent=${1:-bare-$$}
server=${AISM_REDIS_URL:-redis://127.0.0.1:6379/0}

redis() { redis-cli -u "$server" --raw "$@" 2>/dev/null; }

send() { # the push delivers the message; the publish only wakes the engine up sooner
  redis LPUSH aism:engine:response_queue "$1" >/dev/null
  redis PUBLISH aism:engine:responses "$agent" >/dev/null
}

echo "$agent waits for commands" >&2
while true; do
  redis ZADD aism:agents:heartbeats "$(date +%s)" "$agent" >/dev/null
  command=$(redis BRPOP "aism:agent:$agent:commands" 2 | tail -n 1)
  [[ $command =~ ^\{\"id\":\"([^\"]+)\",\"type\":\"([^\"]+)\" ]] || continue
  id=${BASH_REMATCH[1]} type=${BASH_REMATCH[2]}
  echo "$command"

  [[ $type == cancel ]] && continue # this agent works on one command at a time, so the cancelled one has ended
  if [[ $type == fail ]]; then
    send "{\"id\":\"$id-1\",\"type\":\"error\",\"agent_id\":\"$agent\",\"command_id\":\"$id\",\"payload\":{\"code\":\"asked_to\"}}"
  else # for a state_transition, a result means that the agent is in the target state
    send "{\"id\":\"$id-1\",\"type\":\"result\",\"agent_id\":\"$agent\",\"command_id\":\"$id\",\"payload\":{\"done\":\"$type\"}}"
  fi
done
