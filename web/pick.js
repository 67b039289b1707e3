// Pick Images: its sheet on the node, where a click writes the number of a picture into `picked`, or removes it.
// Without this script ComfyUI shows the sheet as a plain picture, and the field is filled in by hand.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const NODE = "SemblancePickImages"
const SVG = "http://www.w3.org/2000/svg"
const LEAST_HEIGHT = 200 // pixels on the canvas

app.registerExtension({
  name: "Semblance.PickImages",

  nodeCreated(node) {
    if (node.constructor.comfyClass !== NODE || !node.addDOMWidget) return
    const sheet = new Sheet(node)
    node.semblanceSheet = sheet
    // The sheet takes the place of the frontend's own picture, in canvas nodes and in Vue nodes.
    node.onDrawBackground = () => {}
    node.hideOutputImages = true
    const onExecuted = node.onExecuted
    node.onExecuted = function (output) {
      onExecuted?.call(this, output)
      sheet.show(output)
    }
  },

  // The outputs of a workflow that comes back to the front, in another tab.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) nodeOf(id)?.semblanceSheet?.show(output)
  },
})

class Sheet {
  constructor(node) {
    this.node = node
    this.field = node.widgets.find((widget) => widget.name === "picked")
    this.cells = []
    const typed = this.field.callback
    this.field.callback = (...given) => {
      const answer = typed?.apply(this.field, given)
      this.mark()
      return answer
    }
  }

  show(output) {
    const image = output?.images?.[0]
    const geometry = output?.sheet?.[0]
    if (!image || !geometry) return
    this.geometry = geometry
    const [width, height] = geometry.size
    const picture = svg("image", { href: api.apiURL(`/view?${new URLSearchParams(image)}`), width, height })
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", height: "100%" })
    this.cells = Array.from({ length: geometry.count }, (_, place) => this.cell(place))
    drawing.append(picture, ...this.cells)
    this.holder().replaceChildren(drawing)
    this.mark()
  }

  // A picture's cell: invisible but for its frame, which covers the one that is drawn on the sheet.
  cell(place) {
    const { columns, cell, frame } = this.geometry
    const [inset, thickness] = frame
    const edge = inset + thickness / 2
    const rect = svg("rect", {
      x: (place % columns) * cell[0] + edge,
      y: Math.floor(place / columns) * cell[1] + edge,
      width: cell[0] - 2 * edge,
      height: cell[1] - 2 * edge,
      fill: "transparent",
      "stroke-width": thickness,
      role: "button",
      tabindex: 0,
      "aria-label": String(place),
    })
    rect.style.cursor = "pointer"
    rect.style.pointerEvents = "all"
    rect.addEventListener("click", () => this.toggle(place))
    rect.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return
      event.preventDefault()
      event.stopPropagation()
      this.toggle(place)
    })
    return rect
  }

  mark() {
    if (!this.geometry) return
    const { picked, by_rule, colours } = this.geometry
    const written = numbersIn(this.field.value)
    const chosen = new Set(written.length || !by_rule ? written : picked)
    this.cells.forEach((rect, place) => {
      const drawn = picked.includes(place) ? colours.ground : "none"
      rect.setAttribute("stroke", chosen.has(place) ? colours.frame : drawn)
      rect.setAttribute("aria-pressed", String(chosen.has(place)))
    })
  }

  toggle(place) {
    // A field that another node fills in is not ours to write.
    if (this.node.inputs?.some((input) => input.widget?.name === this.field.name && input.link != null)) return
    const numbers = numbersIn(this.field.value)
    const kept = numbers.filter((number) => number !== place)
    this.field.value = (kept.length < numbers.length ? kept : [...numbers, place]).join(", ")
    this.field.callback(this.field.value, app.canvas, this.node)
    this.node.graph?.setDirtyCanvas(true, true)
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.()
  }

  holder() {
    if (this.element) return this.element
    this.element = document.createElement("div")
    this.element.addEventListener("wheel", toTheCanvas, { passive: false })
    for (const kind of ["pointerdown", "pointermove", "pointerup"])
      this.element.addEventListener(kind, (event) => isMiddle(event) && toTheCanvas(event))
    const widget = this.node.addDOMWidget("sheet", "semblance_sheet", this.element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => LEAST_HEIGHT,
    })
    widget.serialize = false
    this.makeRoom()
    return this.element
  }

  // So that the whole width of the node serves the sheet when it first appears.
  makeRoom() {
    const [width, height] = this.geometry.size
    const [across, down] = this.node.size
    const needed = this.node.computeSize()[1] - LEAST_HEIGHT + (across * height) / width
    if (needed > down) this.node.setSize([across, needed])
  }
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  return element
}

function numbersIn(text) {
  return String(text ?? "").match(/\d+/g)?.map(Number) ?? []
}

// Zooming by the wheel and moving by the middle button go on over the sheet.
function toTheCanvas(event) {
  event.preventDefault()
  event.stopPropagation()
  app.canvas.canvas.dispatchEvent(new event.constructor(event.type, event))
}

function isMiddle(event) {
  return event.button === 1 || (event.buttons & 4) !== 0
}

// The node of an id as outputs carry it: its own, or `<subgraph>:<id>`.
function nodeOf(id) {
  const [local, subgraph] = id.split(":").reverse()
  const root = app.rootGraph ?? app.graph
  const graph = subgraph ? root?.subgraphs?.get(subgraph) : root
  return graph?.getNodeById(local) ?? graph?.getNodeById(Number(local))
}
