// A BullMQ queue with the work of bench/peers.py: each job sets the state of an agent.
//
//   node bullmq.mjs MODULES URL add COUNT AGENTS    add jobs, and exit
//   node bullmq.mjs MODULES URL work CONCURRENCY    process jobs until killed
//
// MODULES is the directory in which bullmq and ioredis are installed.
import { createRequire } from "node:module";

const [modules, url, mode, ...numbers] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { Queue, Worker } = require("bullmq");
const Redis = require("ioredis");

const NAME = "bench";
const PAGE = 1000;
const connection = new Redis(url, { maxRetriesPerRequest: null });

function makeJob(number, agents) {
  const agentId = `architect-${String(number % agents).padStart(6, "0")}`;
  const target = Math.floor(number / agents) % 2 ? "inbox" : "deep_work";
  const data = { type: "state_transition", agent_id: agentId, payload: { target }, timestamp: "2026-11-22T22:00:00Z" };
  return { name: "response", data, opts: { removeOnComplete: true, removeOnFail: true } };
}

async function add(count, agents) {
  const queue = new Queue(NAME, { connection });
  for (let start = 0; start < count; start += PAGE) {
    const size = Math.min(PAGE, count - start);
    await queue.addBulk(Array.from({ length: size }, (_, number) => makeJob(start + number, agents)));
  }
  await queue.close();
  connection.disconnect();
}

function work(concurrency) {
  const states = new Redis(url);
  const process = ({ data }) => states.set(`aism:agent:${data.agent_id}:state`, data.payload.target);
  new Worker(NAME, process, { connection, concurrency });
}

await { add, work }[mode](...numbers.map(Number));
