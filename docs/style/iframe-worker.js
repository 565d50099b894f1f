// Browsers start no worker from a page on the disk. There, the one that searches runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.body.appendChild(document.createElement("iframe"))
      this.frame.hidden = true
      const inner = this.frame.contentWindow
      inner.postMessage = data => this.send(data, event => this.onmessage?.(event))
      const script = inner.document.createElement("script")
      script.src = url
      this.ready = new Promise(resolve => { script.onload = resolve })
      inner.document.body.append(script)
    }
    postMessage(data) {
      this.ready.then(() => this.send(data, event => this.frame.contentWindow?.dispatchEvent(event)))
    }
    send(data, receive) { // later, and a copy, as between threads
      const event = new MessageEvent("message", { data: structuredClone(data) })
      setTimeout(() => receive(event))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
