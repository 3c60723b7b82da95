/* A device over HTTP: the one that served this page. */
"use strict";

(function (mgota) {
  const PATIENCE = 10000;
  /* Milliseconds to wait for an answer; while a device restarts, connections may just hang. */

  /** A device at `api`, the path that its update routes begin with. */
  class HttpLink {
    constructor(api) {
      this.name = "This device";
      this.interval = 2;
      this._api = api;
      this._authorization = null;
    }

    /** What to show of itself from now on; kept in memory only. */
    signIn(name, secret) {
      const bytes = new TextEncoder().encode(name ? `${name}:${secret}` : secret);
      const latin = String.fromCharCode(...bytes);
      this._authorization = name ? `Basic ${btoa(latin)}` : `Bearer ${latin}`;
    }

    /** The JSON of its status. */
    async status() {
      const response = await this._fetch("GET", "/status");
      try {
        return await response.json();
      } catch {
        throw new mgota.Refusal("The device's answer cannot be read.", "gone");
      }
    }

    /** "commit" or "rollback", of the image that is seen to run. */
    async act(what, sha256) {
      await this._fetch("POST", `/${what}`, sha256 ? { "X-MGOTA-Image": sha256 } : {});
    }

    /** Send an image. `onProgress(bytes done)`; `signal` cancels. Resolves when the device has promised to try it. */
    update(file, { onProgress, signal }) {
      return new Promise((resolve, reject) => {
        const request = new XMLHttpRequest(); // fetch does not tell how far an upload is
        request.open("POST", `${this._api}/update`);
        for (const [name, value] of Object.entries(this._headers())) request.setRequestHeader(name, value);
        request.setRequestHeader("Content-Type", "application/octet-stream");
        request.upload.onprogress = (event) => onProgress(event.loaded);
        request.onload = () => {
          if (request.status === 200) resolve();
          else reject(mgota.refusal(request.status, request.responseText));
        };
        request.onerror = () =>
          reject(new mgota.Refusal("The connection to the device broke. It keeps running what it ran; try again.", "broken"));
        request.onabort = () => reject(new mgota.Refusal("Cancelled. The device keeps running what it ran.", "cancelled"));
        signal.addEventListener("abort", () => request.abort());
        request.send(file);
      });
    }

    _headers() {
      // The first tells the device that a script of its own page asks, and not a form of a foreign one.
      return { "X-MGOTA": "1", ...(this._authorization ? { Authorization: this._authorization } : {}) };
    }

    async _fetch(method, path, headers = {}) {
      let response;
      try {
        response = await fetch(this._api + path, {
          method,
          headers: { ...this._headers(), ...headers },
          cache: "no-store",
          credentials: "omit",
          redirect: "error",
          signal: AbortSignal.timeout(PATIENCE),
        });
      } catch {
        throw new mgota.Refusal("The device does not answer.", "gone");
      }
      if (!response.ok) throw mgota.refusal(response.status, await response.text().catch(() => ""));
      return response;
    }
  }

  mgota.HttpLink = HttpLink;
})((globalThis.mgota ??= {}));
