// The page is whole without this script. It sorts and filters tables, switches lines off and on,
// shows a point's value under the pointer, and unfolds what a link leads to.
(function () {
  "use strict";

  function all(selector, within) {
    return Array.prototype.slice.call((within || document).querySelectorAll(selector));
  }

  function made(name, text) {
    var element = document.createElement(name);
    if (text) { element.textContent = text; }
    return element;
  }

  // A click on a heading sorts its table by that column; a second click turns the order round.
  all("th button").forEach(function (button) {
    button.addEventListener("click", function () {
      var head = button.parentNode, table = head.closest("table"), body = table.tBodies[0];
      var at = Array.prototype.indexOf.call(head.parentNode.children, head);
      var up = head.getAttribute("aria-sort") !== "ascending";
      all("th", head.parentNode).forEach(function (th) { th.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      var rows = Array.prototype.slice.call(body.rows).map(function (row) {
        var cell = row.cells[at], key = cell.getAttribute("data-key");
        return {row: row, key: key === null ? null : parseFloat(key), text: cell.textContent};
      });
      rows.sort(function (a, b) {
        var order;
        if (a.key !== null && b.key !== null) { order = a.key - b.key; }
        else if (a.key !== null || b.key !== null) { order = a.key === null ? 1 : -1; }
        else { order = a.text.localeCompare(b.text, undefined, {numeric: true}); }
        return up ? order : -order;
      });
      rows.forEach(function (one) { body.appendChild(one.row); });
    });
  });

  // Above a filtered table: a field for words, and a choice for each column of few values.
  var MOST_CHOICES = 12;
  all("table.filtered").forEach(function (table) {
    var rows = Array.prototype.slice.call(table.tBodies[0].rows);
    var bar = made("p"), words = made("input"), shown = made("output"), choices = [];
    bar.className = "filter";
    words.type = "search";
    words.placeholder = "Words in a row";
    words.setAttribute("aria-label", "Words in a row");
    bar.appendChild(words);
    all("thead th", table).forEach(function (head, at) {
      var values = rows.map(function (row) { return row.cells[at].textContent; });
      values = values.filter(function (value, i) { return values.indexOf(value) === i; });
      if (values.length < 2 || values.length > MOST_CHOICES) { return; }
      values.sort(function (a, b) { return a.localeCompare(b, undefined, {numeric: true}); });
      var choice = made("select"), any = made("option", head.textContent + ": all");
      any.value = "";
      choice.setAttribute("aria-label", head.textContent);
      choice.appendChild(any);
      values.forEach(function (value) { choice.appendChild(made("option", value)).value = value; });
      choices.push({at: at, choice: choice});
      bar.appendChild(choice);
    });
    function filter() {
      var parts = words.value.toLowerCase().split(/\s+/), count = 0;
      rows.forEach(function (row) {
        var text = row.textContent.toLowerCase();
        var hit = parts.every(function (part) { return text.indexOf(part) >= 0; });
        hit = hit && choices.every(function (one) {
          return !one.choice.value || row.cells[one.at].textContent === one.choice.value;
        });
        row.hidden = !hit;
        count += hit;
      });
      shown.textContent = count + " of " + rows.length + " rows";
    }
    bar.addEventListener("input", filter);
    bar.appendChild(shown);
    table.parentNode.parentNode.insertBefore(bar, table.parentNode);
    filter();
  });

  // Above the first figure: a button for each of its lines, which hides it in every figure.
  var lead = document.querySelector("main > figure");
  var names = lead ? all(".wide [data-of]", lead).map(function (g) {
    return g.getAttribute("data-of");
  }) : [];
  names = names.filter(function (name, i) { return names.indexOf(name) === i; });
  if (names.length > 1) {
    var switches = made("p");
    switches.className = "switches";
    names.forEach(function (name) {
      var button = made("button", name);
      var marked = all(".wide [data-of] use", lead).filter(function (mark) {
        return mark.closest("[data-of]").getAttribute("data-of") === name;
      })[0];
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.style.setProperty("--of", marked ? marked.style.fill : "currentColor");
      button.addEventListener("click", function () {
        var on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        all("[data-of]").forEach(function (group) {
          if (group.getAttribute("data-of") === name) { group.style.display = on ? "" : "none"; }
        });
      });
      switches.appendChild(button);
    });
    lead.insertBefore(switches, lead.firstChild);
  }

  // The value of the point nearest to the pointer, within NEAR pixels.
  var NEAR = 22, tip = made("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.appendChild(tip);
  all("figure svg").forEach(function (svg) {
    var points = all("[data-tip]", svg);
    function leave() { tip.hidden = true; }
    function move(event) {
      var best = null, least = NEAR;
      points.forEach(function (point) {
        var box = point.getBoundingClientRect();
        if (!box.width) { return; }
        var x = box.left + box.width / 2, y = box.top + box.height / 2;
        var far = Math.hypot(event.clientX - x, event.clientY - y);
        if (far < least) { least = far; best = {point: point, x: x, y: y}; }
      });
      if (!best) { leave(); return; }
      tip.textContent = best.point.getAttribute("data-tip");
      tip.hidden = false;
      var most = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = Math.max(8, Math.min(best.x - tip.offsetWidth / 2, most)) + "px";
      tip.style.top = Math.max(8, best.y - tip.offsetHeight - 12) + "px";
    }
    if (points.length) {
      svg.addEventListener("pointermove", move);
      svg.addEventListener("pointerdown", move);
      svg.addEventListener("pointerleave", leave);
    }
  });
  window.addEventListener("scroll", function () { tip.hidden = true; }, {passive: true});

  // A link unfolds what it leads to; on paper all is unfolded but the cells.
  function unfold() {
    var place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!place) { return; }
    var folded = place.matches("details") ? place : place.querySelector("section > details");
    if (folded) { folded.open = true; }
    for (var outer = place.closest("details"); outer; outer = outer.parentNode.closest("details")) {
      outer.open = true;
    }
    place.scrollIntoView();
  }
  window.addEventListener("hashchange", unfold);
  unfold();
  window.addEventListener("beforeprint", function () {
    all("section:not(#cells) details").forEach(function (one) { one.open = true; });
  });
})();
