/* A device as the RPC dialect describes it, in memory, for tests of the sender. */
"use strict";

class Device {
  constructor() {
    this.image = null; // what was activated
    this.requests = [];
    this.fault = null; // (request) => error object, or null
    this.restart();
  }

  /** A reset: the upload is forgotten. */
  restart() {
    this.session = null;
    this.stored = [];
    this.sealed = false;
  }

  /** Answer one request, as parsed JSON. `bytes` are the chunk's. */
  answer({ id, method, params }, bytes = []) {
    this.requests.push({ id, method, params });
    const error = this.fault?.({ id, method, params });
    if (error) return { id, error };
    if (method === "ota.status") {
      const mine = params.session === this.session && this.session !== null;
      return { id, result: { state: "CONFIRMED", session: mine ? this.session : null, next: mine ? this.stored.length : null } };
    }
    return { id, ...this._chunk(params, bytes) };
  }

  _chunk({ total, offset, session }, bytes) {
    if (session !== this.session && offset === 0) {
      this.restart();
      this.session = session;
    }
    if (session !== this.session) return { error: { code: 1, message: "no such upload" } };
    const told = { session, next: this.stored.length };
    if (!bytes.length && offset === total) {
      if (this.stored.length < total) return { error: { code: 1, message: "the image is not whole", data: told } };
      this.image = this.stored;
      return { result: { ...told, sealed: true, activated: true } };
    }
    if (offset > this.stored.length) return { error: { code: 1, message: `expected offset ${told.next}`, data: told } };
    if (offset === this.stored.length) this.stored.push(...bytes);
    told.next = this.stored.length;
    return { result: told.next === total ? { ...told, sealed: true } : told };
  }
}

module.exports = { Device };
