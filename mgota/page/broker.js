/* Devices behind an MQTT broker, over WebSockets: ROOT/DEVICE/rx goes to a device, /tx comes from it, /status is its
   retained presence. What comes from there is anybody's: it is bounded, checked, and only ever shown as text. */
"use strict";

(function (mgota) {
  const PATIENCE = 8000; // milliseconds to wait for an answer
  const MOST_DEVICES = 1000;
  const LARGEST = 65536; // bytes of a message that is looked at
  const SLOWEST = 8000; // milliseconds between two tries to reach the broker again

  const seconds = () => performance.now() / 1000;
  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const random = (length) => hex(crypto.getRandomValues(new Uint8Array(length)));
  const refuse = (message, wrong) => {
    throw new mgota.Refusal(message, wrong);
  };

  /** JSON of a message, or null. */
  function parse(payload) {
    if (payload.length > LARGEST) return null;
    try {
      const value = JSON.parse(new TextDecoder().decode(payload));
      return typeof value === "object" ? value : null;
    } catch {
      return null;
    }
  }

  /** What is wrong with the way to a broker is found before anything is tried. */
  function checked({ url, root }) {
    let parsed;
    try {
      parsed = new URL(url);
    } catch {
      refuse("The address is not a URL: it begins with wss:// or ws://.", "url");
    }
    if (!/^wss?:$/.test(parsed.protocol)) refuse("A page reaches a broker over WebSockets only: the address begins with wss:// or ws://.", "url");
    if (parsed.username || parsed.password) refuse("User and password have fields of their own.", "url");
    if (location.protocol === "https:" && parsed.protocol === "ws:") refuse("A page that came over https may only use wss://.", "url");
    if (!root || /[+#\0]/.test(root) || root.startsWith("/") || root.endsWith("/")) refuse("The root topic is a name such as mgota, without + and # and without a slash at its ends.", "root");
  }

  /** A PUBLISH packet of QoS 0 (MQTT 3.1.1, section 3.3). */
  function publish(topic, message) {
    const [name, payload] = [topic, JSON.stringify(message)].map((text) => new TextEncoder().encode(text));
    const length = [];
    for (let left = 2 + name.length + payload.length; left > 0; left >>= 7) length.push((left & 127) | (left > 127 ? 128 : 0));
    return new Uint8Array([0x30, ...length, name.length >> 8, name.length & 255, ...name, ...payload]);
  }

  /** One broker. onDevices() and onState(connected) tell of changes. */
  class Broker {
    constructor({ url, root, user, password }, { onDevices, onState }) {
      checked({ url, root });
      this.url = url;
      this.root = root;
      this.devices = new Map(); // name -> {online, version}
      this.connected = false;
      this._login = user ? { username: user, password } : {};
      this._links = new Map();
      this._onDevices = onDevices;
      this._onState = onState;
    }

    /** Reach it, once. From then on it is reached again whenever it is lost. */
    async open() {
      this._client = mqtt.connect(this.url, {
        ...this._login,
        clientId: `mgota-page-${random(8)}`,
        protocolVersion: 4,
        clean: true,
        reconnectPeriod: 0,
        connectTimeout: PATIENCE,
        queueQoSZero: false,
        resubscribe: false,
        timerVariant: "native",
        createWebsocket: (url, protocols) => (this._socket = new WebSocket(url, protocols)),
      });
      const client = this._client;
      client.on("message", (topic, payload) => this._heard(topic, payload));
      let why = `No broker answers at ${this.url}. Is this its WebSocket listener?`;
      let field = "url";
      client.on("error", (error) => {
        if (![4, 5].includes(error.code)) return; // MQTT 3.1.1, section 3.2.2.3
        why = "The broker does not accept this user and password.";
        field = "user";
      });
      const reached = await new Promise((resolve) => {
        client.once("close", () => resolve(false));
        client.once("connect", () => resolve(true));
      });
      if (!reached) {
        this.close();
        refuse(why, field);
      }
      if (!(await this._subscribe())) {
        this.close();
        refuse(`The broker does not let this user listen below ${this.root}.`, "root");
      }
      client.on("connect", () => this._subscribe());
      client.on("close", () => this._lost());
    }

    /** Whether the broker lets us listen. If the connection breaks meanwhile, the next one tries again. */
    async _subscribe() {
      const topics = [`${this.root}/+/status`, `${this.root}/+/tx`];
      const granted = await this._client.subscribeAsync(topics, { qos: 1 }).catch(() => null);
      if (this._over || !granted || granted.some(({ qos }) => qos > 2)) return false;
      this._client.options.reconnectPeriod = 500;
      this._turn(true);
      return true;
    }

    _lost() {
      if (this._over) return;
      const period = this._client.options.reconnectPeriod;
      this._client.options.reconnectPeriod = Math.min(period * (1.5 + Math.random()), SLOWEST);
      // Who is there is told anew after the next connection; a broker that restarted may have forgotten somebody.
      for (const device of this.devices.values()) device.online = false;
      if (this.connected) this._turn(false);
    }

    _turn(connected) {
      this.connected = connected;
      for (const link of this._links.values()) link.turned();
      this._onDevices();
      this._onState(connected);
    }

    /** The page goes away: whatever is being sent is given up. MQTT.js sends in a later turn, and there is none. */
    farewell() {
      this._leaving = true;
      for (const link of this._links.values()) link.cancel();
      this._leaving = false;
    }

    close() {
      this._over = true;
      this.connected = false;
      this._client?.end(true);
    }

    /** The way to a device. */
    link(name) {
      if (!this._links.has(name)) this._links.set(name, new MqttLink(this, name));
      return this._links.get(name);
    }

    online(name) {
      return this.connected && this.devices.get(name)?.online === true;
    }

    send(name, message, qos) {
      if (!this.connected) return;
      const topic = `${this.root}/${name}/rx`;
      if (!this._leaving) this._client.publish(topic, JSON.stringify(message), { qos }, () => {});
      else if (this._socket.readyState === WebSocket.OPEN) this._socket.send(publish(topic, message));
    }

    _heard(topic, payload) {
      if (this._over || !topic.startsWith(`${this.root}/`)) return;
      const [name, kind, ...more] = topic.slice(this.root.length + 1).split("/");
      if (!name || more.length) return;
      if (kind === "status") this._present(name, payload);
      else if (kind === "tx" && this._links.has(name)) this._links.get(name).receive(parse(payload));
    }

    _present(name, payload) {
      const params = parse(payload)?.params;
      if (!payload.length) {
        this.devices.delete(name); // somebody removed what it had left behind
      } else if (params && (this.devices.has(name) || this.devices.size < MOST_DEVICES)) {
        const version = mgota.line(params.firmware_version, 64);
        this.devices.set(name, { online: params.status === "online", version });
      } else {
        return;
      }
      this._links.get(name)?.turned();
      this._onDevices();
    }
  }

  async function base64(blob) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    return btoa(String.fromCharCode(...bytes));
  }

  /** One device. It does what an HttpLink does. */
  class MqttLink {
    constructor(broker, name) {
      this.name = name;
      this.interval = 4;
      this._broker = broker;
      this._waiting = new Map(); // id -> function that takes the reply
      this._id = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
      this._upload = null;
      this._abandoned = new Set(); // sessions that the device was not told of yet
    }

    get online() {
      return this._broker.online(this.name);
    }

    /** Why it is not. */
    get away() {
      return this._broker.connected ? "The device is offline." : "The connection to the broker is lost.";
    }

    async status() {
      const found = await this._call("ota.status", {});
      if (typeof found !== "object" || found === null) refuse("The device's answer cannot be read.", "gone");
      return found;
    }

    async act(what, sha256) {
      await this._call(`ota.${what}`, sha256 ? { image: sha256 } : {});
    }

    _call(method, params) {
      const id = this._id++;
      return new Promise((resolve, reject) => {
        const end = (settle, value) => {
          clearTimeout(timer);
          this._waiting.delete(id);
          settle(value);
        };
        const fail = (message, wrong) => end(reject, new mgota.Refusal(message, wrong));
        const timer = setTimeout(() => fail("The device does not answer.", "gone"), PATIENCE);
        const taken = ({ result, error }) => {
          if (!error) end(resolve, result);
          else if (error.code === -32601) fail(`The device does not know ${method}.`);
          else fail(mgota.refusedByDevice(error.code, error.message));
        };
        this._waiting.set(id, { taken, fail });
        if (this.online) this._broker.send(this.name, { id, method, params }, 1);
        else fail(this.away, "gone");
      });
    }

    /** As HttpLink's; `onPause(text)` tells why nothing moves, or "" when it does again. */
    update(file, { onProgress, onPause, signal }) {
      const sender = new mgota.Sender(file.size, { newSession: () => random(12), firstId: this._id });
      this._id += 0x10000000; // ids of its own
      return new Promise((resolve, reject) => {
        this._upload = new Upload(this._broker, this, file, sender, { onProgress, onPause, resolve, reject });
        signal.addEventListener("abort", () => this.cancel());
        this._upload.turned();
      }).finally(() => {
        this._upload = null;
      });
    }

    cancel() {
      this._upload?.cancel();
    }

    /** Tell the device to give an upload up, now or as soon as it is there: else it would wait for the rest, and be
        busy meanwhile. */
    abandon(session) {
      this._abandoned.add(session);
      if (this.online) this._tellAbandoned();
    }

    _tellAbandoned() {
      for (const session of this._abandoned) {
        this._broker.send(this.name, { id: this._id++, method: "ota.abort", params: { session } }, 1);
      }
      this._abandoned.clear();
    }

    /** Broker or device came or went. */
    turned() {
      if (this.online) this._tellAbandoned();
      else for (const { fail } of [...this._waiting.values()]) fail(this.away, "gone");
      this._upload?.turned();
    }

    receive(reply) {
      if (!reply) return;
      this._waiting.get(reply.id)?.taken(reply);
      this._upload?.receive(reply);
    }
  }

  /** An upload under way: what `Sender` decides, done. */
  class Upload {
    constructor(broker, link, file, sender, { onProgress, onPause, resolve, reject }) {
      Object.assign(this, { broker, link, file, sender, onProgress, onPause });
      this._end = (settle, value) => {
        clearInterval(this._clock);
        this._ended = true;
        settle(value);
      };
      this._resolve = resolve;
      this._reject = reject;
      this._clock = setInterval(() => this._after(() => sender.tick(seconds())), 500);
    }

    turned() {
      const online = this.link.online;
      if (online !== this._online) {
        this._online = online;
        if (online) this.sender.connected(seconds());
        else this.sender.disconnected();
        this.onPause(online ? "" : `${this.link.away} The transfer goes on when it is back.`);
      }
      this._pump();
    }

    receive(reply) {
      this._after(() => this.sender.receive(reply, seconds()));
    }

    /** Stop, and let the device know. */
    cancel() {
      if (this._ended) return;
      this._end(this._reject, new mgota.Refusal("Cancelled. The device keeps running what it ran.", "cancelled"));
      this.link.abandon(this.sender.session);
    }

    _after(step) {
      if (this._ended) return;
      step();
      this.onProgress(this.sender.acked);
      switch (this.sender.phase) {
        case "done":
        case "unsure":
          this._end(this._resolve);
          break;
        case "failed":
          this._end(this._reject, mgota.failedUpload(this.sender));
          if (!this.sender.refused) this.link.abandon(this.sender.session);
          break;
        default:
          this._pump();
      }
    }

    /** Send what may be sent, one after the other: reading the file takes its time. */
    async _pump() {
      if (this._pumping) return;
      this._pumping = true;
      try {
        for (let next; !this._ended && (next = this.sender.take(seconds())); ) {
          const { id, method, params, from, to } = next;
          if (from !== undefined) params.chunk = await base64(this.file.slice(from, to));
          this.broker.send(this.link.name, { id, method, params }, 0);
        }
      } catch {
        this._end(this._reject, new mgota.Refusal("The file cannot be read any more. Choose it again."));
        this.link.abandon(this.sender.session);
      } finally {
        this._pumping = false;
      }
    }
  }

  mgota.Broker = Broker;
})((globalThis.mgota ??= {}));
