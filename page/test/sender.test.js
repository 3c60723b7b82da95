"use strict";
const assert = require("node:assert/strict");
const test = require("node:test");

require("../../mgota/page/words.js");
const { Sender } = require("../../mgota/page/sender.js");
const { Device } = require("./device.js");

const IMAGE = Array.from({ length: 1000 }, (_, i) => (i * 7) % 251);

function make(options = {}) {
  let sessions = 0;
  return new Sender(IMAGE.length, { newSession: () => `session-${String(sessions++).padStart(8, "0")}`, chunk: 64, window: 4, ...options });
}

/** Everything that the sender wants to send now. */
function due(sender, now) {
  const found = [];
  for (let next; (next = sender.take(now)); ) found.push(next);
  return found;
}

const chunkOf = ({ from, to }) => (from === undefined ? [] : IMAGE.slice(from, to));
const deliver = (sender, device, requests, now) => requests.forEach((r) => sender.receive(device.answer(r, chunkOf(r)), now));

/** Run to the end over a line that loses nothing. */
function run(sender, device, now = 0) {
  for (let turns = 0; turns < 1000; turns++) {
    const requests = due(sender, now);
    if (!requests.length) return;
    deliver(sender, device, requests, now);
  }
  assert.fail("it does not end");
}

test("an image arrives whole, and the empty chunk ends it", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  run(sender, device);
  assert.equal(sender.phase, "done");
  assert.deepEqual(device.image, IMAGE);
  assert.equal(device.requests.at(-1).params.offset, IMAGE.length);
  assert.equal(device.requests.length, Math.ceil(IMAGE.length / 64) + 1);
});

test("nothing leaves before there is a connection", () => {
  const sender = make();
  assert.equal(sender.take(0), null);
  assert.equal(sender.phase, "idle");
});

test("one chunk flies until the first is answered, then a window of them", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  const [first, ...more] = due(sender, 0);
  assert.equal(more.length, 0);
  sender.receive(device.answer(first, chunkOf(first)), 0);
  assert.deepEqual(due(sender, 0).map((r) => r.from), [64, 128, 192, 256]);
  assert.equal(due(sender, 0).length, 0);
});

test("the end is not sent before the device has verified everything", () => {
  const sender = make({ chunk: 1000 });
  sender.connected(0);
  const [only] = due(sender, 0);
  sender.receive({ id: only.id, result: { session: sender.session, next: 1000 } }, 0);
  assert.equal(sender.phase, "checking");
  assert.equal(due(sender, 0).length, 0);
  sender.tick(5); // a silence: the device is asked
  const [question] = due(sender, 5);
  assert.equal(question.method, "ota.status");
  sender.receive({ id: question.id, result: { session: sender.session, next: 1000 } }, 5);
  assert.equal(due(sender, 5)[0].params.offset, 1000);
});

test("a gap sends it back once, however many chunks flew behind it", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  deliver(sender, device, due(sender, 0), 0);
  const [, ...rest] = due(sender, 0); // the first of them is lost
  deliver(sender, device, rest, 0);
  assert.deepEqual(due(sender, 0).map((r) => r.from), [64, 128, 192, 256]);
  run(sender, device);
});

test("after a lost connection it asks, and goes on where the device is", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  deliver(sender, device, due(sender, 0), 0);
  const [arrived] = due(sender, 0);
  device.answer(arrived, chunkOf(arrived)); // stored, and the answer is lost with the connection
  sender.disconnected();
  assert.equal(sender.take(1), null);
  sender.connected(9);
  const [question, ...more] = due(sender, 9);
  assert.deepEqual([question.method, question.params, more.length], ["ota.status", { session: sender.session }, 0]);
  sender.receive(device.answer(question), 9);
  assert.equal(sender.acked, 128);
  run(sender, device, 9);
  assert.equal(sender.phase, "done");
  assert.deepEqual(device.image, IMAGE);
});

test("a device that restarted gets everything again, with another session", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  deliver(sender, device, due(sender, 0), 0);
  const before = sender.session;
  device.restart();
  sender.disconnected();
  sender.connected(9);
  run(sender, device, 9);
  assert.notEqual(sender.session, before);
  assert.equal(sender.phase, "done");
  assert.deepEqual(device.image, IMAGE);
});

test("a device that loses every upload is given up", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  for (let i = 0; i < 5 && sender.phase !== "failed"; i++) {
    deliver(sender, device, due(sender, i), i);
    device.restart();
    sender.disconnected();
    sender.connected(i);
    deliver(sender, device, due(sender, i), i);
  }
  assert.equal(sender.phase, "failed");
  assert.match(sender.error, /keeps losing/);
  assert.equal(sender.refused, false);
});

test("a silence asks, and a long one ends it; not while the connection is away", () => {
  const sender = make();
  sender.connected(0);
  due(sender, 0);
  sender.tick(4);
  assert.equal(due(sender, 4).length, 0);
  sender.tick(4.1);
  assert.equal(due(sender, 4.1)[0].method, "ota.status");
  sender.disconnected();
  sender.tick(1000);
  assert.equal(sender.phase, "idle");
  sender.connected(1000);
  sender.tick(1060);
  assert.equal(sender.phase, "sending");
  sender.tick(1060.1);
  assert.equal(sender.phase, "failed");
});

test("what the device refuses for good ends it with its words", () => {
  for (const [error, busy] of [
    [{ code: 1, message: "the image is not signed", data: { final: true } }, false],
    [{ code: 2, message: "an update is under way" }, true],
    [{ code: 1, message: "image of 1000 bytes does not fit" }, false],
  ]) {
    const sender = make();
    sender.connected(0);
    const [first] = due(sender, 0);
    sender.receive({ id: first.id, error }, 0);
    assert.deepEqual([sender.phase, sender.error, sender.busy, sender.refused], ["failed", error.message, busy, true]);
    assert.equal(sender.take(0), null);
  }
});

test("a refusal that passes is asked about after a silence, and the upload begins again", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  const [first] = due(sender, 0);
  sender.receive({ id: first.id, error: { code: 1, message: "the device is stopping", data: { session: sender.session, kind: "transfer" } } }, 0);
  assert.equal(sender.phase, "sending");
  assert.equal(due(sender, 0).filter((r) => r.method === "ota.status").length, 0);
  sender.tick(5);
  run(sender, device, 5);
  assert.equal(sender.phase, "done");
  assert.deepEqual(device.image, IMAGE);
});

test("the answer to the end is lost and the device is gone for its reset: that is unsure, not failed", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  while (!device.image) {
    for (const request of due(sender, 0)) {
      const answer = device.answer(request, chunkOf(request));
      if (!device.image) sender.receive(answer, 0);
    }
  }
  device.restart();
  sender.tick(5);
  const [question] = due(sender, 5);
  sender.receive(device.answer(question), 5);
  assert.equal(sender.phase, "unsure");
});

test("the end comes twice, to a device that has restarted meanwhile: unsure, too, and nothing is sent again", () => {
  const sender = make({ chunk: 1000 });
  sender.connected(0);
  const [only] = due(sender, 0);
  sender.receive({ id: only.id, result: { session: sender.session, next: 1000, sealed: true } }, 0);
  const [end] = due(sender, 0);
  sender.receive({ id: end.id, error: { code: 1, message: "only 0 of 1000 bytes came", data: { session: sender.session, next: 0 } } }, 0);
  assert.equal(sender.phase, "unsure");
  assert.equal(due(sender, 0).length, 0);
});

test("a device without sessions is left to another tool", () => {
  const sender = make();
  sender.connected(0);
  due(sender, 0);
  sender.tick(5);
  const [question] = due(sender, 5);
  sender.receive({ id: question.id, error: { code: -32601, message: "no" } }, 5);
  assert.match(sender.error, /stop-and-wait/);
});

test("answers to others, late ones and nonsense change nothing", () => {
  const sender = make(), device = new Device();
  sender.connected(0);
  const [first] = due(sender, 0);
  for (const junk of [
    null, 7, "x", [], {}, { id: 999, result: { session: sender.session, next: 64 } }, { id: null, error: { code: 1 } },
    { id: String(first.id), result: {} },
  ]) {
    sender.receive(junk, 0);
    assert.deepEqual([sender.acked, sender.phase], [0, "sending"]);
  }
  for (const result of [null, "ok", { session: "another", next: 64 }, { session: sender.session, next: 1e9 }, { session: sender.session, next: -1 }, { session: sender.session, next: 0.5 }]) {
    const twin = make();
    twin.connected(0);
    const [sent] = due(twin, 0);
    twin.receive({ id: sent.id, result }, 0);
    assert.deepEqual([twin.acked, twin.phase], [0, "sending"]);
  }
  deliver(sender, device, [first], 0);
  assert.equal(sender.acked, 64);
});

test("over any bad line the image arrives whole or the sender says that it failed", () => {
  const ends = { done: 0, unsure: 0, failed: 0 };
  for (let seed = 1; seed <= 300; seed++) {
    let dice = seed;
    const roll = (sides) => (dice = (dice * 48271) % 2147483647) % sides; // Lehmer's generator
    const sender = make({ firstId: seed }), device = new Device();
    let now = 0;
    let wire = [];
    sender.connected(now);
    for (let turn = 0; turn < 4000 && !["done", "unsure", "failed"].includes(sender.phase); turn++) {
      now += 0.5;
      wire.push(...due(sender, now));
      const answers = [];
      for (const request of wire.splice(0, 1 + roll(4))) {
        const times = [0, 1, 1, 1, 1, 1, 1, 2][roll(8)]; // lost, once, or twice
        for (let i = 0; i < times; i++) answers.push(device.answer(request, chunkOf(request)));
      }
      for (const answer of answers) if (roll(8)) sender.receive(answer, now);
      if (!roll(40)) {
        sender.disconnected();
        wire = [];
        sender.connected((now += 1));
      }
      if (!roll(150) && !device.image) device.restart();
      sender.tick(now);
    }
    assert.ok(["done", "unsure", "failed"].includes(sender.phase), `seed ${seed}: ${sender.phase}`);
    if (sender.phase === "done") assert.deepEqual(device.image, IMAGE, `seed ${seed}`);
    if (sender.phase === "failed") assert.match(sender.error, /keeps losing/, `seed ${seed}`);
    if (device.image) assert.deepEqual(device.image, IMAGE, `seed ${seed}`);
    ends[sender.phase] += 1;
  }
  assert.ok(ends.done > 280, JSON.stringify(ends));
});
