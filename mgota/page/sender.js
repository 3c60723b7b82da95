/* How an image travels to a device over MQTT: which chunk is next, what an answer means, when to ask. Rules:
   - it does no I/O and looks at no clock: requests come out of `take`, answers and seconds go in;
   - the device decides where to go on: its `next` is believed, also when it goes back;
   - after a silence the device is asked, instead of being sent everything again;
   - until the first chunk is answered nothing else is sent: most refusals come with it;
   - a session that the device does not know any more is begun again, from the first byte, a few times. */
"use strict";

(function (mgota) {
  const IDLE = "idle"; // not connected
  const SENDING = "sending";
  const CHECKING = "checking"; // everything is there; the device verifies what it stored
  const DONE = "done"; // the device goes to try it
  const UNSURE = "unsure"; // the end was sent and the device does not know the session any more: look at its status
  const FAILED = "failed";
  const RESTARTS = 3;

  const count = (value, most) => Number.isInteger(value) && value >= 0 && value <= most;

  class Sender {
    /**
     * total: bytes of the image. newSession: makes a random id of 16 to 64 letters and digits. firstId: of the first
     * request. chunk: bytes; window: chunks in flight; patience: seconds without an answer until the device is asked;
     * giveUp: seconds without any answer, while connected, until it is over.
     */
    constructor(total, { newSession, firstId = 1, chunk = 16384, window = 8, patience = 4, giveUp = 60 }) {
      Object.assign(this, { total, chunk, window, patience, giveUp });
      this.error = null; // why it failed, one line of the device's or ours
      this.busy = false; // whether it failed because somebody else is at it
      this.refused = false; // whether the device itself said so
      this.kind = null; // what kind of trouble, in the device's word: rejected, transfer, flash, busy
      this._newSession = newSession;
      this._id = firstId;
      this._restarts = 0;
      this._connected = false;
      this._over = null;
      this._heard = 0;
      this._begin();
    }

    _begin() {
      this.session = this._newSession();
      this.acked = 0; // bytes that the device has stored
      this._cursor = 0; // the next byte to send
      this._sealed = false;
      this._endSent = false;
      this._flying = new Map(); // id -> the offset of a chunk
      this._asking = null; // id of the question under way
      this._ask = false; // whether to ask before anything else
    }

    get phase() {
      if (this._over) return this._over;
      if (!this._connected) return IDLE;
      return this.acked >= this.total ? CHECKING : SENDING;
    }

    /** The broker is reached, for the first time or again. */
    connected(now) {
      this._connected = true;
      this._heard = this._since = now;
      this._flying.clear();
      this._asking = null;
      this._ask = this._cursor > 0;
    }

    /** The broker is gone: what flies may be lost. */
    disconnected() {
      this._connected = false;
    }

    /** The next request, or null: {id, method, params, from, to}; the caller adds params.chunk, bytes from..to, in base64. */
    take(now) {
      if (this._over || !this._connected || this._asking !== null) return null;
      if (this._ask) {
        this._ask = false;
        this._since = now;
        this._asking = this._id++;
        return { id: this._asking, method: "ota.status", params: { session: this.session } };
      }
      if (this._sealed) return this._endSent ? null : this._end(now);
      if (this._cursor >= this.total || this._flying.size >= (this.acked ? this.window : 1)) return null;
      const from = this._cursor;
      this._cursor = Math.min(from + this.chunk, this.total);
      return this._send(from, this._cursor, now);
    }

    _end(now) {
      this._endSent = true;
      return this._send(this.total, this.total, now);
    }

    _send(from, to, now) {
      const id = this._id++;
      if (!this._flying.size) this._since = now;
      this._flying.set(id, from);
      return { id, method: "ota.upload", params: { total: this.total, offset: from, session: this.session }, from, to };
    }

    /** Time goes by: call it every second or so. */
    tick(now) {
      if (this._over || !this._connected) return; // else something is always expected
      if (now - this._heard > this.giveUp) {
        this._fail("the device does not answer");
      } else if (now - this._since > this.patience) {
        this._asking = null;
        this._ask = true;
      }
    }

    /** A reply, as parsed JSON; those to others are ignored. */
    receive(reply, now) {
      if (this._over || reply === null || typeof reply !== "object") return;
      const asked = reply.id === this._asking && this._asking !== null;
      if (!asked && !this._flying.has(reply.id)) return;
      this._heard = this._since = now;
      const from = this._flying.get(reply.id);
      this._flying.delete(reply.id);
      if (asked) this._asking = null;
      if (reply.error) this._refused(reply.error, asked, from);
      else if (asked) this._told(reply.result ?? {});
      else this._stored(reply.result ?? {});
    }

    _stored({ session, next, sealed, activated }) {
      if (session !== this.session || !count(next, this.total)) return;
      this.acked = Math.max(this.acked, next);
      this._cursor = Math.max(this._cursor, this.acked);
      this._sealed ||= sealed === true;
      if (activated === true) this._over = DONE;
    }

    /** What the device says of the upload when it is asked. */
    _told({ session, next }) {
      if (session === this.session && count(next, this.total)) {
        this._goOn(next);
        this._sealed = next === this.total && (this._sealed || next > 0);
        this._endSent = false;
      } else if (this._endSent) {
        this._over = UNSURE;
      } else {
        this._again();
      }
    }

    _refused(error, asked, from) {
      const data = error.data ?? {};
      const message = mgota.line(error.message) || "the device gives no reason";
      if (asked) {
        // A device that cannot tell: perhaps it restarts just now. The next silence asks again.
        if (error.code === -32601) this._fail("the device does not know sessions: use mgota push --stop-and-wait");
      } else if (error.code === 2 || data.final === true) {
        this.busy = error.code === 2;
        this.kind = data.kind ?? null;
        this._fail(message, true);
      } else if (this._endSent && !data.next) {
        this._over = UNSURE; // it had everything, and has nothing now: perhaps it restarted with it
      } else if (count(data.next, this.total)) {
        this._goOn(data.next);
      } else if (data.kind !== "transfer" && from === 0) {
        this._fail(message, true);
      } // else it passes, as when the device is stopping: the silence that follows asks
    }

    /** Go on where the device wants it. What still flies was sent for nothing, and its answers mean nothing. */
    _goOn(next) {
      this.acked = this._cursor = next;
      this._flying.clear();
    }

    _again() {
      if (this._restarts++ < RESTARTS) this._begin();
      else this._fail("the device keeps losing the upload");
    }

    _fail(message, refused = false) {
      this.error = message;
      this.refused = refused;
      this._over = FAILED;
    }
  }

  mgota.Sender = Sender;
})((globalThis.mgota ??= {}));

if (typeof module === "object") module.exports = globalThis.mgota;
