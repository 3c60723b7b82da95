/* The devices behind a broker: connecting, the list of those that are present, choosing one. */
"use strict";

(function (mgota) {
  const { $, show, put, news, trouble, clear, on } = mgota;
  const { api, state, choose, leave, lookAgain } = mgota.page;
  let broker = null; // while there is a connection

  function renderDevices() {
    const list = $("device-list");
    const names = [...broker.devices.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const rows = new Map([...list.children].map((row) => [row.dataset.name, row]));
    for (const [name, row] of rows) if (!broker.devices.has(name)) row.remove();
    names.forEach((name, place) => {
      const row = rows.get(name) ?? newRow(name);
      if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
      const { version } = broker.devices.get(name);
      const online = broker.online(name);
      const [, shown, presence] = row.firstChild.children;
      if (shown.textContent !== version) shown.textContent = version;
      presence.textContent = online ? "Online" : "Offline";
      presence.className = `presence ${online ? "online" : ""}`;
      row.firstChild.setAttribute("aria-current", String(state.link?.name === name));
      row.firstChild.disabled = state.locked;
    });
    put("no-devices", names.length ? "" : `No device has announced itself below ${broker.root} yet.`);
    show("no-devices", !names.length);
  }

  function newRow(name) {
    const row = document.createElement("li");
    const button = document.createElement("button");
    row.dataset.name = name;
    button.type = "button";
    for (const part of ["name", "version", "presence"]) {
      const span = document.createElement("span");
      span.className = part;
      button.append(span, " ");
    }
    button.children[0].textContent = name;
    button.addEventListener("click", async () => {
      const chosen = choose(broker.link(name));
      renderDevices();
      await chosen;
      $("device-title").focus();
    });
    row.append(button);
    return row;
  }

  function devicesChanged() {
    if (!broker) return;
    renderDevices();
    if (state.link && !state.working) lookAgain(0.1);
  }

  function brokerTurned(connected) {
    put("where", connected ? broker.url : `${broker.url}: connection lost, trying again`);
    if (!connected) news("The connection to the broker is lost. The page tries again.");
  }

  async function connect() {
    clear();
    const form = Object.fromEntries(["url", "root", "user", "password"].map((id) => [id, $(id).value.trim()]));
    form.password = $("password").value;
    for (const id of ["url", "root", "user"]) $(id).removeAttribute("aria-invalid");
    $("connect").disabled = true;
    show("connecting", true);
    try {
      broker = new mgota.Broker(form, { onDevices: devicesChanged, onState: brokerTurned });
      await broker.open();
      history.replaceState(null, "", `#${new URLSearchParams({ broker: form.url, root: form.root })}`);
      $("password").value = "";
      show("broker", false);
      show("devices", true);
      show("disconnect", true);
      brokerTurned(true);
      renderDevices();
      $("devices-title").focus();
    } catch (error) {
      broker = null;
      trouble(error instanceof mgota.Refusal ? error.message : "The broker cannot be reached.");
      if (!(error instanceof mgota.Refusal)) console.error(error);
      const field = error.wrong || "url";
      $(field).setAttribute("aria-invalid", "true");
      $(field).focus();
    } finally {
      $("connect").disabled = false;
      show("connecting", false);
    }
  }

  function disconnect() {
    broker.close();
    broker = null;
    leave();
    $("device-list").replaceChildren();
    for (const id of ["devices", "disconnect"]) show(id, false);
    put("where", "");
    show("broker", true);
    $("url").focus();
  }

  // Who leaves the page in the middle of an upload must not leave a device behind that waits for the rest.
  window.addEventListener("pagehide", () => broker?.farewell());

  on("broker-form", "submit", connect);
  on("disconnect", "click", disconnect);
  if (!api && typeof mqtt === "undefined") {
    trouble("This copy of the page lacks mqtt.min.js, so it cannot reach a broker. `mgota page FILE` writes one that can.");
  } else if (!api) {
    const given = new URLSearchParams(location.hash.slice(1));
    $("url").value = given.get("broker") ?? "";
    $("root").value = given.get("root") ?? "mgota";
    show("broker", true);
  }
})((globalThis.mgota ??= {}));
