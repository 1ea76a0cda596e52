"""What each thing that happens means. Pure: a draft of the fleet and a message in, effects out; no clock, no input or
output.

`responses` decides what agents say, `requests` what operators ask, `due` what a deadline brings, `signs` what
heartbeats show. `common` has the moves that they share: to take an agent in, to change its state, to end a command, to
refuse, to bury.
"""
