"use strict";
const assert = require("node:assert/strict");
const test = require("node:test");

const mgota = require("../../mgota/page/words.js");

const SHA = "ab".repeat(32);
const OTHER = "cd".repeat(32);
const image = (version, sha256 = SHA) => ({ size: 70000, sha256, version });
const status = (more = {}) => ({
  state: "CONFIRMED", active_slot: "a", image: image("1.0.0"), staged: null, trial: null, update: null, outcome: null, reason: null, ...more,
});

test("sizes and durations", () => {
  assert.deepEqual([0, 1023, 1024, 70000, 1048576, 7.94 * 1048576].map(mgota.size), ["0 bytes", "1023 bytes", "1.0 KiB", "68 KiB", "1.0 MiB", "7.9 MiB"]);
  assert.deepEqual([-3, 0.4, 59, 60, 125].map(mgota.duration), ["0 s", "0 s", "59 s", "1 min", "2 min 5 s"]);
});

test("what a device says becomes one line that ends", () => {
  assert.equal(mgota.line("a\nb\u0000\u202ec\t d "), "a b c d");
  assert.equal(mgota.line("x".repeat(500)).length, 300);
  assert.equal(mgota.line(undefined), "");
  assert.equal(mgota.line({ a: 1 }), "[object Object]");
});

test("every state has a word and says what may be done", () => {
  const seen = (more) => {
    const { badge, mayInstall, mayReturn, why } = mgota.view(status(more));
    return [badge.text, mayInstall, mayReturn, why !== ""];
  };
  assert.deepEqual(seen({}), ["Ready", true, true, false]);
  assert.deepEqual(seen({ state: "FAILED", trial: { seconds_left: 5 } }), ["On trial", false, false, true]);
  assert.deepEqual(seen({ state: "TESTING" }), ["Restarting", false, false, true]);
  assert.deepEqual(seen({ update: { received: 1, size: 2 } }), ["Being updated", false, false, true]);
  assert.deepEqual(seen({ state: "UNKNOWN" }), ["Needs attention", false, false, true]);
  assert.deepEqual(seen({ outcome: "stuck" }), ["Needs attention", true, false, false]);
});

test("a status in words, also an empty one and a foreign one", () => {
  const view = mgota.view(status({ outcome: "rolled_back", reason: "not committed\nin time" }));
  assert.equal(view.version, "1.0.0");
  assert.equal(view.image, `68 KiB, SHA-256 ${SHA.slice(0, 16)}…`);
  assert.equal(view.last, "Rolled back: not committed in time");
  assert.equal(mgota.view(status({ image: null })).version, "none");
  assert.equal(mgota.view(status({ image: image(null) })).version, "without a version (abababab)");
  assert.equal(mgota.view(status({ outcome: "abducted" })).last, "abducted");
  assert.equal(mgota.view({}).badge.text, "Ready");
});

test("how an update ended", () => {
  const before = status();
  const ending = (more) => mgota.ending(before, status(more));
  assert.equal(ending({ state: "TESTING" }), null);
  assert.equal(ending({}), null);
  assert.equal(ending({ state: "FAILED", active_slot: "b", image: image("2.0.0", OTHER), trial: { seconds_left: 9 } }), "trial");
  assert.equal(ending({ state: "FAILED", active_slot: "b", trial: { seconds_left: 9 } }), "trial"); // the same image again
  assert.equal(ending({ active_slot: "b", image: image("2.0.0", OTHER), outcome: "committed" }), "kept");
  assert.equal(ending({ active_slot: "b", outcome: "committed" }), "kept");
  assert.equal(ending({ staged: image("2.0.0", OTHER) }), "staged");
  assert.equal(ending({ outcome: "rolled_back" }), "undone");
  assert.equal(ending({ state: "FAILED" }), null);
});

test("refusals say what to do", () => {
  assert.equal(mgota.refusal(401, "authentication is required").wrong, "signin");
  assert.match(mgota.refusal(401, "wrong credentials\n").message, /does not accept/);
  assert.equal(mgota.refusal(429, "").wrong, "signin");
  assert.equal(mgota.refusal(422, "the image is not signed\n").message, "The device refused the image. The image is not signed. It keeps running what it ran.");
  assert.equal(mgota.refusal(409, "an image is on trial").message, "The device cannot do that now. An image is on trial.");
  for (const code of [400, 403, 404, 408, 412, 413, 421, 500, 503, 599]) assert.match(mgota.refusal(code, "why").message, /\.( |$|\))/);
  assert.match(mgota.failedUpload({ error: "x", refused: true }).message, /refused the image\. X\. It keeps/);
  assert.match(mgota.failedUpload({ error: "x", busy: true, refused: true }).message, /cannot do that now/);
  assert.match(mgota.failedUpload({ error: "x", refused: true, kind: "flash" }).message, /could not store/);
  assert.match(mgota.failedUpload({ error: "x", refused: true, kind: "transfer" }).message, /transfer failed/);
  assert.match(mgota.failedUpload({ error: "x" }).message, /transfer failed/);
  assert.match(mgota.refusedByDevice(2, "y"), /now\. Y\.$/);
});

const bytes = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));
const long = "9".repeat(64);

test("the version tag of an image, wherever the pieces are cut", () => {
  const whole = bytes(`\u00ff\u0000MG_VERSION:\u0000MMG_VERSION:2.0.0\u0000MG_VERSION:3\u0000`);
  for (let cut = 0; cut <= whole.length; cut++) {
    const finder = new mgota.VersionFinder();
    finder.feed(whole.subarray(0, cut));
    finder.feed(whole.subarray(cut));
    assert.equal(finder.version, "2.0.0", `cut at ${cut}`);
  }
  const single = new mgota.VersionFinder();
  for (const byte of bytes(`xx MG_VERSION:${long}\u0000`)) single.feed(Uint8Array.of(byte));
  assert.equal(single.version, long);
});

test("what is no version tag", () => {
  for (const text of ["", "MG_VERSION:", "MG_VERSION:1.0", "MG_VERSION:1 0\u0000", "MG_VERSION:\u0000", `MG_VERSION:${long}9\u0000`, "mg_version:1\u0000"]) {
    const finder = new mgota.VersionFinder();
    assert.equal(finder.feed(bytes(text)), false, text);
  }
});

test("a rate over the last seconds, once there is one", () => {
  const rate = new mgota.Rate(8);
  assert.equal(rate.note(0, 0), null);
  assert.equal(rate.note(500, 0.5), null);
  assert.equal(rate.note(2000, 2), 1000);
  for (let second = 3; second < 30; second++) rate.note(2000 + (second - 2) * 10, second);
  assert.equal(rate.note(2280, 30), 10);
  assert.equal(mgota.progress(1024, 2048, 512), "1.0 KiB of 2.0 KiB, 512 bytes/s, 2 s left");
  assert.equal(mgota.progress(1024, 2048, null), "1.0 KiB of 2.0 KiB");
});
