/* How the page tells and asks: notices, announcements, a question. Rules: text is set as text, never as markup; what
   changes by itself is announced, sparingly; a question begins on its way out. */
"use strict";

(function (mgota) {
  const $ = (id) => document.getElementById(id);

  function show(id, visible) {
    $(id).hidden = !visible;
  }

  function put(id, text) {
    if ($(id).textContent !== text) $(id).textContent = text;
  }

  /** For a screen reader only. */
  function news(text) {
    put("news", text);
  }

  function tell(id, text) {
    for (const other of ["alert", "good"]) {
      show(other, other === id && text !== "");
      put(other, other === id ? text : "");
    }
  }
  function trouble(text) {
    tell("alert", text);
    $("alert").scrollIntoView({ block: "nearest" }); // on a phone it may be far above
  }
  const success = (text) => tell("good", text);
  const clear = () => tell("alert", "");

  let answer = null; // takes the person's answer to the question that is shown

  /** Ask before something that matters. The focus begins on the way out, and returns to where it was. */
  function confirmed(title, text, yes) {
    put("confirm-title", title);
    put("confirm-text", text);
    put("confirm-yes", yes);
    $("confirm").showModal();
    return new Promise((resolve) => {
      answer = resolve;
    });
  }

  function answered(yes) {
    $("confirm").close();
    answer?.(yes);
    answer = null;
  }
  $("confirm-no").addEventListener("click", () => answered(false));
  $("confirm-yes").addEventListener("click", () => answered(true));
  $("confirm").addEventListener("cancel", () => answered(false));
  $("confirm").addEventListener("close", () => {
    if (!$("confirm").open) answered(false); // this event comes late: the next question may be there already
  });

  /** Take an event of an element; what the browser would do by itself is left undone. */
  function on(id, event, handler) {
    $(id).addEventListener(event, (what) => {
      what.preventDefault();
      handler(what);
    });
  }

  Object.assign(mgota, { $, show, put, news, trouble, success, clear, confirmed, on });
})((globalThis.mgota ??= {}));
