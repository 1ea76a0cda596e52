#!/usr/bin/env bash
# An agent that is nothing but redis-cli: it beats, takes commands, and answers them. No library, no registration.
#
#   examples/bare_agent.sh architect-a1b2c3
#   aism-engine send architect-a1b2c3 greet --payload '{"name": "Ada"}' --wait
set -euo pipefail

agent=${1:-bare-$$}
server=${AISM_REDIS_URL:-redis://127.0.0.1:6379/0}

redis() { redis-cli -u "$server" --raw "$@" 2>/dev/null; }

say() { # pushing is what counts; publishing only makes it heard sooner
  redis LPUSH aism:engine:response_queue "$1" >/dev/null
  redis PUBLISH aism:engine:responses "$1" >/dev/null
}

echo "$agent waits for commands" >&2
while true; do
  redis ZADD aism:agents:heartbeats "$(date +%s)" "$agent" >/dev/null
  command=$(redis BRPOP "aism:agent:$agent:commands" 2 | tail -n 1)
  [[ $command =~ ^\{\"id\":\"([^\"]+)\",\"type\":\"([^\"]+)\" ]] || continue
  id=${BASH_REMATCH[1]} type=${BASH_REMATCH[2]}
  echo "$command"

  if [[ $type == fail ]]; then
    say "{\"id\":\"$id-1\",\"type\":\"error\",\"agent_id\":\"$agent\",\"command_id\":\"$id\",\"payload\":{\"code\":\"asked_to\"}}"
  else # for a state_transition this also says: I am there
    say "{\"id\":\"$id-1\",\"type\":\"result\",\"agent_id\":\"$agent\",\"command_id\":\"$id\",\"payload\":{\"done\":\"$type\"}}"
  fi
done
