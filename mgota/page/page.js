/* One device on the page: what it is at, an update, keeping it or going back. It shows what a link (http.js, broker.js)
   tells, in the words of words.js. Rules: one thing at a time is under way; what a device said is dropped when another
   one is shown by then; while a device restarts another one may be shown, and nothing is waited for without end; the
   focus moves only when a person has asked for something that takes its place. */
"use strict";

(function (mgota) {
  const { $, show, put, news, trouble, success, clear, confirmed, on } = mgota;
  const seconds = () => performance.now() / 1000;
  const pause = (time) => new Promise((wake) => setTimeout(wake, time * 1000));

  const SETTLE = 15; // seconds that a device may show its old state after an update that it accepted
  const EFFECT = 30; // seconds until a commit or rollback must show
  const AWAY = 60; // seconds that a restart may take until a person should look after the device
  const LARGEST_SCAN = 64 * 1024 * 1024; // bytes of a file that are searched for a version

  const state = {
    link: null, // the device that is shown
    status: null, // what it said last
    working: false, // an update, commit or rollback of ours is under way
    locked: false, // and nothing else may be chosen meanwhile
    sending: false, // its bytes are on their way
    gone: null, // why the device does not answer, or null
    trialEnds: null, // seconds on our clock
    trialSpan: null,
    file: null,
    lookTimer: null,
    turn: 0, // one more whenever another device is shown: answers for the last one are dropped
  };

  // --- Showing a device -------------------------------------------------------------------------------------------

  function render() {
    const { status, link, gone, working } = state;
    show("device", link !== null && (status !== null || gone !== null));
    if (!link) return;
    put("device-title", link.name);
    const view = status ? mgota.view(status) : null;
    const badge = badgeOf(view);
    put("state", badge.text);
    $("state").className = `badge ${badge.kind}`;
    show("gone", gone !== null && !working);
    put("gone", gone ?? "");
    show("facts", view !== null);
    put("version", view ? view.version + (view.staged ? `; ${view.staged} waits to be started` : "") : "");
    for (const fact of ["image", "slot", "last"]) put(fact, view?.[fact] ?? "");
    const trial = !gone && !working && view?.state === "trial";
    show("trial", trial);
    state.trialEnds = trial ? seconds() + view.secondsLeft : null;
    if (trial) {
      put("trial-title", `${view.version} is on trial`);
      state.trialSpan = Math.max(state.trialSpan ?? 0, view.secondsLeft);
    } else {
      state.trialSpan = null;
    }
    countDown();
    const idle = !working && !gone && view !== null;
    show("update-form", !working && !trial && view !== null);
    show("back", idle && view.mayReturn);
    $("install").disabled = !(idle && view.mayInstall && state.file);
    put("install-hint", hint(view));
  }

  function badgeOf(view) {
    if (state.sending) return { kind: "wait", text: "Being updated" };
    if (state.gone) return { kind: "", text: "Away" };
    return view?.badge ?? { kind: "", text: "" };
  }

  function hint(view) {
    if (state.gone) return "";
    if (!view?.mayInstall) return view?.why ?? "";
    if (!state.file) return "";
    const same = state.file.version !== null && state.file.version === state.status?.image?.version;
    return same ? "The device runs this version already." : "";
  }

  function countDown() {
    if (state.trialEnds === null) return;
    const left = Math.max(0, state.trialEnds - seconds());
    put(
      "trial-text",
      left > 0
        ? `${mgota.duration(left)} left to keep it. Then the device goes back to its previous version by itself.`
        : "The time is over: the device goes back to its previous version.",
    );
    $("trial-left").max = state.trialSpan;
    $("trial-left").value = left;
  }
  setInterval(countDown, 1000);

  // --- Looking at a device ----------------------------------------------------------------------------------------

  function take(status) {
    const before = state.status;
    state.status = status;
    state.gone = null;
    if (before && !state.working) noticed(before, status);
    render();
  }

  /** What happened without us. */
  function noticed(before, now) {
    if (before.trial && !now.trial && now.state === "CONFIRMED") {
      if (now.outcome === "rolled_back") trouble(`The trial is over. The device went back to ${mgota.version(now.image)}: ${mgota.line(now.reason) || "it was not kept"}.`);
      else if (now.outcome === "committed") success(`${mgota.version(now.image)} was kept.`);
    } else if (!before.trial && now.trial) {
      news(`${mgota.version(now.image)} is on trial.`);
    }
  }

  function lost(error) {
    if (error.wrong === "signin") return askToSignIn(error.message);
    state.gone = error.message;
    if (error.wrong !== "gone") trouble(error.message);
    render();
  }

  /** One look; whether the device answered. */
  async function look() {
    const { link, turn } = state;
    if (!link) return false;
    try {
      const status = await link.status();
      if (turn === state.turn) take(status);
      return turn === state.turn;
    } catch (error) {
      if (turn === state.turn) lost(error);
      return false;
    }
  }

  /** Look again and again; not while a person signs in, whose typing that would disturb. */
  function lookAgain(delay) {
    clearTimeout(state.lookTimer);
    if (!$("signin").hidden) return;
    state.lookTimer = setTimeout(async () => {
      if (!state.working && state.link) await look();
      if (state.link) lookAgain(state.trialEnds !== null ? 1 : state.link.interval);
    }, delay * 1000);
  }

  async function choose(link) {
    turnTo(link);
    await look();
    lookAgain(link.interval);
  }

  /** Show no device any more. */
  function leave() {
    clearTimeout(state.lookTimer);
    turnTo(null);
  }

  /** Show another device, or none. Who waited for the last one to restart waits no more. */
  function turnTo(link) {
    state.turn += 1;
    Object.assign(state, { link, status: null, gone: null, trialSpan: null, working: false });
    show("sending", false);
    setLocked(false);
    clear();
    render();
  }

  // --- Installing -------------------------------------------------------------------------------------------------

  async function pick(blob) {
    if (!blob) return;
    state.file = { blob, version: null };
    put("file-name", `${mgota.line(blob.name, 80)}, ${mgota.size(blob.size)}`);
    render();
    if (blob.size === 0) {
      state.file = null;
      put("file-name", "This file is empty.");
      return render();
    }
    const version = await versionOf(blob).catch(() => null);
    if (state.file?.blob !== blob) return;
    state.file.version = version;
    put("file-name", `${mgota.line(blob.name, 80)}, ${mgota.size(blob.size)}${version ? `, version ${version}` : ""}`);
    news(version ? `Chosen: version ${version}` : "Chosen: a file without a version");
    render();
  }

  async function versionOf(blob) {
    const finder = new mgota.VersionFinder();
    for (let at = 0; at < Math.min(blob.size, LARGEST_SCAN); at += 1 << 20) {
      if (finder.feed(new Uint8Array(await blob.slice(at, at + (1 << 20)).arrayBuffer()))) break;
    }
    return finder.version;
  }

  function progressBar(text, done = null, total = null) {
    const bar = $("progress");
    if (done === null) bar.removeAttribute("value");
    else bar.value = total ? (100 * done) / total : 0;
    put("progress-text", text);
  }

  /** Everything that a person starts: one at a time, and its trouble is told. */
  async function work(doing) {
    if (state.working) return;
    const { turn } = state;
    state.working = true;
    clear();
    setLocked(true);
    render();
    try {
      await doing();
    } catch (error) {
      if (turn !== state.turn) return;
      if (!(error instanceof mgota.Refusal)) console.error(error);
      if (error.wrong === "signin") askToSignIn(error.message);
      else trouble(error instanceof mgota.Refusal ? error.message : "Something went wrong in this page. Load it again.");
    } finally {
      if (turn === state.turn) await worked();
    }
  }

  async function worked() {
    state.working = false;
    setLocked(false);
    show("sending", false);
    render();
    if (state.link && $("signin").hidden) await look();
    if (state.link) lookAgain(1);
  }

  function setLocked(locked) {
    state.locked = locked;
    $("device").setAttribute("aria-busy", String(locked));
    for (const button of $("device-list").querySelectorAll("button")) button.disabled = locked;
    $("disconnect").disabled = locked;
  }

  async function install() {
    const { link, file } = state;
    const before = await link.status();
    take(before);
    const now = mgota.view(before);
    if (!now.mayInstall) throw new mgota.Refusal(now.why);
    const abort = new AbortController();
    const stop = () => abort.abort();
    put("sending-title", `Installing ${file.version ?? mgota.line(file.blob.name, 80)}`);
    progressBar("Beginning…", 0, 1);
    state.sending = true;
    render();
    show("sending", true);
    show("cancel", true);
    $("sending-title").focus();
    $("cancel").addEventListener("click", stop);
    const sent = { done: 0 };
    try {
      await link.update(file.blob, { ...meter(file.blob.size, sent), signal: abort.signal });
    } catch (error) {
      // A connection that breaks at the very end may have taken the device's yes with it.
      if (error.wrong !== "broken" || sent.done < file.blob.size) throw error;
    } finally {
      $("cancel").removeEventListener("click", stop);
      state.sending = false;
    }
    show("cancel", false);
    put("sending-title", "The device restarts");
    progressBar("It starts the new version.");
    news("Sent and verified. The device restarts.");
    setLocked(false); // it may take its time, or never come back
    const end = await ended(before);
    if (end) told(end);
  }

  /** Progress for eyes with every step, for ears every quarter. */
  function meter(total, sent) {
    const rate = new mgota.Rate();
    let quarter = 0;
    let paused = "";
    const onProgress = (done) => {
      sent.done = done;
      if (paused) return;
      const text = mgota.progress(done, total, rate.note(done, seconds()));
      if (done >= total) progressBar("All bytes are sent. The device verifies them.");
      else progressBar(text, done, total);
      const reached = Math.floor((4 * done) / total);
      if (reached > quarter && reached < 4) news(`${25 * reached} percent`);
      quarter = Math.max(quarter, reached);
    };
    const onPause = (why) => {
      paused = why;
      if (why) put("progress-text", why);
      if (why) news(why);
    };
    return { onProgress, onPause };
  }

  /** Watch a device until it shows how an update ended: what `mgota.ending` calls it, "nothing", or, when that takes
      too long, "away" or "waiting". null if another device is shown by then. */
  async function ended(before) {
    let unchanged = null;
    const begun = seconds();
    const { turn } = state;
    for (;;) {
      const answered = await look();
      if (turn !== state.turn) return null;
      const end = answered ? mgota.ending(before, state.status) : null;
      if (end) return end;
      const still = answered && state.status.state === "CONFIRMED";
      unchanged = still ? (unchanged ?? seconds()) : null;
      if (unchanged !== null && seconds() - unchanged > SETTLE) return "nothing";
      if (seconds() - begun > AWAY) return answered ? "waiting" : "away";
      if (!answered) progressBar("Waiting for the device to come back.");
      await pause(0.5);
    }
  }

  function told(end) {
    const version = mgota.version(state.status?.image);
    state.working = false;
    show("sending", false);
    render();
    if (end === "trial") {
      success(`${version} runs. Look whether all is well, then keep it.`);
      $("trial-title").focus();
    } else if (end === "kept") success(`${version} is installed and kept.`);
    else if (end === "staged") success(`${mgota.version(state.status.staged)} lies on the device. Its application decides when to start it.`);
    else if (end === "undone") trouble(`The new version did not work. The device went back to ${version}: ${mgota.line(state.status.reason) || "no reason is given"}.`);
    else if (end === "away") trouble(`The device has not come back in ${mgota.duration(AWAY)}. Has it power and network? If it returns, this page shows what it runs.`);
    else if (end === "waiting") trouble(`The device has the new version, and has not started it in ${mgota.duration(AWAY)}. This page shows when it does.`);
    else trouble("The device did not start the new version. It keeps running what it ran; try again.");
    if (!["nothing", "away"].includes(end)) forgetFile();
    if (end !== "trial") $("device-title").focus();
  }

  function forgetFile() {
    state.file = null;
    $("file").value = "";
    put("file-name", "or drop it here");
  }

  // --- Keeping and returning --------------------------------------------------------------------------------------

  /** Ask the device for something, about the image of the status that the person saw, and watch until it shows. */
  async function act(what, { link, status }, done) {
    await link.act(what, status.image?.sha256);
    const until = seconds() + EFFECT;
    while (seconds() < until) {
      if ((await look()) && done(status, state.status)) return true;
      await pause(0.3);
    }
    return false;
  }

  const settled = (now) => now.state === "CONFIRMED" && !now.trial;
  const slow = "The device accepted, and does not show it yet.";

  async function keep() {
    const seen = { link: state.link, status: state.status };
    const version = mgota.version(seen.status.image);
    const text = `The device runs ${version} from now on. It does not go back by itself any more.`;
    if (!(await confirmed(`Keep ${version}?`, text, "Keep it"))) return;
    await work(async () => {
      if (await act("commit", seen, (_, now) => settled(now))) success(`${mgota.version(state.status.image)} is kept.`);
      else trouble(slow);
      $("device-title").focus();
    });
  }

  async function goBack() {
    const seen = { link: state.link, status: state.status };
    const version = mgota.version(seen.status.image);
    const text = `The device restarts, and runs the version before ${version} again.`;
    if (!(await confirmed(`Roll back ${version}?`, text, "Roll back"))) return;
    await work(async () => {
      const other = (before, now) => settled(now) && (now.active_slot !== before.active_slot || now.image?.sha256 !== before.image?.sha256);
      if (await act("rollback", seen, other)) success(`Rolled back. ${mgota.version(state.status.image)} runs.`);
      else trouble(slow);
      $("device-title").focus();
    });
  }

  // --- Signing in, over HTTP --------------------------------------------------------------------------------------

  function askToSignIn(message) {
    const again = state.signedIn === true;
    clearTimeout(state.lookTimer);
    state.gone = null;
    state.status = null;
    render();
    show("signin", true);
    if (again) trouble(message);
    $("secret").setAttribute("aria-invalid", String(again));
    $("secret").value = "";
    $(again ? "secret" : "name").focus();
    state.signedIn = false;
  }

  async function signIn() {
    clear();
    state.link.signIn($("name").value, $("secret").value);
    state.signedIn = true;
    if (!(await look())) {
      if (!$("signin").hidden && state.gone) trouble(state.gone);
      return;
    }
    show("signin", false);
    $("secret").value = "";
    $("device-title").focus();
    lookAgain(state.link.interval);
  }

  // --- Beginning --------------------------------------------------------------------------------------------------

  on("signin-form", "submit", signIn);
  on("commit", "click", keep);
  on("end-trial", "click", goBack);
  on("rollback", "click", goBack);
  on("update-form", "submit", () => {
    if (!$("install").disabled) work(install);
  });
  $("file").addEventListener("change", () => pick($("file").files[0]));

  for (const event of ["dragover", "drop"]) window.addEventListener(event, (what) => what.preventDefault());
  on("drop", "dragover", () => $("drop").classList.add("over"));
  for (const event of ["dragleave", "drop"]) on("drop", event, () => $("drop").classList.remove("over"));
  on("drop", "drop", (what) => pick(what.dataTransfer.files[0]));
  window.addEventListener("beforeunload", (what) => {
    if (state.locked) what.preventDefault();
  });

  const api = document.querySelector('meta[name="mgota-api"]').content;
  if (api) {
    put("where", location.host);
    choose(new mgota.HttpLink(api));
  }
  mgota.page = { api, state, choose, leave, lookAgain };
})((globalThis.mgota ??= {}));
