// A click on a heading sorts its table by that column; a second click turns the order round.
document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var head = button.parentNode, table = head.closest("table"), body = table.tBodies[0];
    var at = Array.prototype.indexOf.call(head.parentNode.children, head);
    var up = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach(function (th) {
      th.removeAttribute("aria-sort");
    });
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
