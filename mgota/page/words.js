/* What the page says: numbers, states and refusals in words. It only decides; it touches neither page nor network. */
"use strict";

(function (mgota) {
  /** Something that a person should read. `wrong` is "signin" where credentials would help, "gone" where waiting may. */
  class Refusal extends Error {
    constructor(message, wrong = "") {
      super(message);
      this.name = "Refusal";
      this.wrong = wrong;
    }
  }

  /** 123, 45.6 KiB, 7.9 MiB. */
  function size(bytes) {
    if (bytes < 1024) return `${bytes} bytes`;
    const kib = bytes / 1024;
    return kib < 1024 ? `${kib.toFixed(kib < 10 ? 1 : 0)} KiB` : `${(kib / 1024).toFixed(1)} MiB`;
  }

  /** 45 s, 2 min 5 s. */
  function duration(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 60) return `${whole} s`;
    return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
  }

  /** What a device sends is data: one line, and not without end. */
  function line(text, most = 300) {
    const plain = String(text ?? "").replace(/[\p{C}\p{Z}]+/gu, " ").trim();
    return plain.length > most ? `${plain.slice(0, most - 1)}…` : plain;
  }

  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  const sentence = (text) => (text ? capital(line(text)).replace(/\.?$/, ".") : "");

  /** The name of an image: its version, or the beginning of its digest. */
  function version(image) {
    if (!image) return "none";
    return line(image.version, 64) || `without a version (${line(image.sha256, 64).slice(0, 8)})`;
  }

  const STATES = {
    trial: { kind: "wait", text: "On trial" },
    restart: { kind: "wait", text: "Restarting" },
    update: { kind: "wait", text: "Being updated" },
    unknown: { kind: "bad", text: "Needs attention" },
    stuck: { kind: "bad", text: "Needs attention" },
    ready: { kind: "good", text: "Ready" },
  };

  function stateOf(status) {
    if (status.state === "UNKNOWN") return "unknown";
    if (status.state === "TESTING") return "restart";
    if (status.trial) return "trial";
    if (status.update) return "update";
    return status.outcome === "stuck" ? "stuck" : "ready";
  }

  const OUTCOMES = {
    committed: () => "Kept for good",
    rolled_back: (reason) => `Rolled back${reason}`,
    interrupted: (reason) => `Interrupted${reason}`,
    stuck: (reason) => `Could not be undone${reason}`,
    refused: (reason) => `Refused${reason}`,
  };

  /** What to show of a status (SPEC.md, Status). */
  function view(status) {
    const state = stateOf(status);
    const reason = status.reason ? `: ${line(status.reason)}` : "";
    const outcome = OUTCOMES[status.outcome];
    const image = status.image;
    return {
      state,
      badge: STATES[state],
      version: version(image),
      image: image ? `${size(Number(image.size))}, SHA-256 ${line(image.sha256, 64).slice(0, 16)}…` : "none",
      slot: line(status.active_slot, 8),
      last: state === "trial" ? "On trial now" : outcome ? outcome(reason) : status.outcome ? line(status.outcome) + reason : "None yet",
      staged: status.staged ? version(status.staged) : null,
      secondsLeft: status.trial ? Number(status.trial.seconds_left) : null,
      mayInstall: state === "ready" || state === "stuck",
      mayReturn: state === "ready",
      why: {
        unknown: "The device cannot read its boot record. An operator must commit the running version or reset the device.",
        restart: "The device is about to start the new version.",
        trial: "Keep the version on trial or roll it back first.",
        update: "Somebody else is updating this device.",
      }[state] ?? "",
    };
  }

  /** Two statuses of a device with an update between them: how did it end? null means: not yet. */
  function ending(before, now) {
    const other = now.image?.sha256 !== before.image?.sha256;
    if (now.state === "TESTING") return null;
    if (now.trial) return other || now.active_slot !== before.active_slot ? "trial" : null;
    if (now.staged && now.staged.sha256 !== before.staged?.sha256) return "staged";
    if (now.state !== "CONFIRMED") return null;
    if (other || (now.outcome === "committed" && now.active_slot !== before.active_slot)) return "kept";
    return now.outcome === "rolled_back" || now.outcome === "stuck" ? "undone" : null;
  }

  /** A refusal of the HTTP routes, as one should say it. */
  function refusal(status, reason) {
    const told = sentence(reason);
    switch (status) {
      case 401:
        return new Refusal(/wrong/.test(reason) ? "The device does not accept these credentials." : "Please sign in.", "signin");
      case 429:
        return new Refusal("Too many failed attempts to sign in. Wait a little, then try again.", "signin");
      case 403:
      case 421:
        return new Refusal(`The device does not talk to this page. ${told}`);
      case 408:
        return new Refusal("The transfer stalled, and the device gave up. Try again.");
      case 409:
        return new Refusal(`The device cannot do that now. ${told}`);
      case 412:
        return new Refusal("Another version is running by now, so nothing was done.");
      case 413:
        return new Refusal(`The image is too large for this device. ${told}`);
      case 422:
        return new Refusal(`The device refused the image. ${told} It keeps running what it ran.`);
      case 500:
        return new Refusal(`The device could not store the image. ${told} It keeps running what it ran.`);
      case 503:
        return new Refusal("The device has too many connections. Try again in a moment.", "gone");
      default:
        return new Refusal(`The device refused. ${told} (${status})`);
    }
  }

  /** An error reply of a device over MQTT. */
  function refusedByDevice(code, message) {
    return code === 2 ? `The device cannot do that now. ${sentence(message)}` : `The device refused. ${sentence(message)}`;
  }

  /** Why a `Sender` failed. */
  function failedUpload(sender) {
    const told = sentence(sender.error);
    if (sender.busy) return new Refusal(`The device cannot do that now. ${told}`);
    if (sender.kind === "flash") return new Refusal(`The device could not store the image. ${told} It keeps running what it ran.`);
    if (sender.refused && sender.kind !== "transfer") return new Refusal(`The device refused the image. ${told} It keeps running what it ran.`);
    return new Refusal(`The transfer failed. ${told} The device keeps running what it ran.`);
  }

  const TAG = new TextEncoder().encode("MG_VERSION:");
  const MOST = 64;

  /** Finds the version tag of an image that comes in pieces (SPEC.md, Image): the first whole one counts. */
  class VersionFinder {
    constructor() {
      this.version = null;
      this._tail = new Uint8Array(0);
    }

    /** Look at the next bytes; true once the version is found. */
    feed(bytes) {
      if (this.version !== null) return true;
      const data = new Uint8Array(this._tail.length + bytes.length);
      data.set(this._tail);
      data.set(bytes, this._tail.length);
      for (let at = data.indexOf(TAG[0]); at >= 0; at = data.indexOf(TAG[0], at + 1)) {
        if (TAG.every((byte, i) => data[at + i] === byte)) {
          const found = this._text(data, at + TAG.length);
          if (found) this.version = found;
          if (found) return true;
        }
      }
      this._tail = data.slice(-(TAG.length + MOST));
      return false;
    }

    _text(data, start) {
      let end = start;
      while (end < data.length && end - start <= MOST && data[end] > 0x20 && data[end] < 0x7f) end += 1;
      const whole = end > start && end - start <= MOST && data[end] === 0;
      return whole ? String.fromCharCode(...data.subarray(start, end)) : null;
    }
  }

  /** How fast, over the last seconds: it remembers a few moments. */
  class Rate {
    constructor(span = 8) {
      this._span = span;
      this._moments = [];
    }

    /** Bytes a second, or null until there is something to tell. `now` in seconds. */
    note(done, now) {
      this._moments.push([now, done]);
      while (this._moments.length > 2 && now - this._moments[0][0] > this._span) this._moments.shift();
      const [then, before] = this._moments[0];
      return now - then >= 1 && done > before ? (done - before) / (now - then) : null;
    }
  }

  /** What stands below a progress bar. */
  function progress(done, total, rate) {
    const text = `${size(done)} of ${size(total)}`;
    return rate ? `${text}, ${size(Math.round(rate))}/s, ${duration((total - done) / rate)} left` : text;
  }

  Object.assign(mgota, {
    Refusal, VersionFinder, Rate, size, duration, line, version, view, ending, refusal, refusedByDevice, failedUpload, progress,
  });
})((globalThis.mgota ??= {}));

if (typeof module === "object") module.exports = globalThis.mgota;
