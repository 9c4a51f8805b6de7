// One upload with the real tus-js-client, as the JSON on standard input says; one JSON line as the answer.
//
// Options, all but `file` with a default:
//   client            4 (tus-js-client 4.x, the default) or 5 (the 5.0 pre-release)
//   endpoint          where to create the upload        uploadUrl        or: which upload to resume
//   file              path of the file                  source           "path" | "buffer" | "stream" | "webstream" (5 only)
//   metadata, headers objects of strings                chunkSize        bytes of one PATCH (default: all)
//   parallelUploads   number of partial uploads         retryDelays      milliseconds, default below
//   deferred          send the length at the end        dataDuringCreation   POST carries data
//   override          POST + X-HTTP-Method-Override     addRequestId     X-Request-ID on every request
//   protocol          "tus-v1" | "ietf-draft-03" | "ietf-draft-05" (5 only)
//   abortAfterBytes   stop after so much progress       resume           and start() again afterwards
//   terminate         DELETE the upload at the end (or when aborting)
//   urlStorage        file in which URLs are kept for resuming; previous uploads found there are resumed
//
// Answer: {ok, aborted, terminated, url, uploadId, bytesSent, error, lateErrors,
//          requests: [{method, url, offset, length, status, responseOffset, responseBody}]}

import fs from 'node:fs'
import process from 'node:process'
import { PassThrough, Readable } from 'node:stream'

const DEFAULT_RETRY_DELAYS = [0, 50, 100, 200, 400, 800, 1600, 3200]
const CLIENTS = { 4: 'tus-js-client', 5: 'tus-js-client-5' }

const options = JSON.parse(fs.readFileSync(0, 'utf8'))
const client = options.client ?? 4
const tus = await import(CLIENTS[client])

const requests = []
const lateErrors = []
const uploadIds = []
let bytesSent = 0

function source() {
  switch (options.source ?? 'path') {
    case 'path':
      return client === 5 ? { path: options.file } : fs.createReadStream(options.file)
    case 'buffer':
      return fs.readFileSync(options.file)
    case 'stream':
      // Piped, so that the client cannot recognise the file behind it and seek in it.
      return fs.createReadStream(options.file).pipe(new PassThrough())
    case 'webstream':
      return Readable.toWeb(fs.createReadStream(options.file))
    default:
      throw new Error(`unknown source ${options.source}`)
  }
}

async function urlStorage() {
  if (!options.urlStorage) return {}
  const storage =
    client === 5
      ? (await import('tus-js-client-5/node/FileUrlStorage')).FileUrlStorage
      : tus.FileUrlStorage
  return {
    urlStorage: new storage(options.urlStorage),
    storeFingerprintForResuming: true,
    fingerprint: async () => `acceptance-${options.file}`,
  }
}

function defined(object) {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined))
}

function asJson(error) {
  if (!error) return null
  const response = error.originalResponse
  return defined({ message: error.message, status: response?.getStatus(), body: response?.getBody() })
}

const pending = new WeakMap()

const common = defined({
  endpoint: options.endpoint,
  uploadUrl: options.uploadUrl,
  metadata: options.metadata,
  headers: options.headers,
  chunkSize: options.chunkSize,
  parallelUploads: options.parallelUploads,
  uploadLengthDeferred: options.deferred,
  uploadDataDuringCreation: options.dataDuringCreation,
  overridePatchMethod: options.override,
  addRequestId: options.addRequestId,
  protocol: options.protocol,
  uploadSize: ['stream', 'webstream'].includes(options.source) && !options.deferred ? fs.statSync(options.file).size : undefined,
  retryDelays: options.retryDelays ?? DEFAULT_RETRY_DELAYS,
  ...(await urlStorage()),
  onBeforeRequest(request) {
    const entry = {
      method: request.getMethod(),
      url: request.getURL(),
      offset: number(request.getHeader('Upload-Offset')),
      length: number(request.getHeader('Upload-Length')),
      status: null, // stays null when no answer came
    }
    pending.set(request, entry)
    requests.push(entry)
  },
  onAfterResponse(request, response) {
    const entry = pending.get(request)
    entry.status = response.getStatus()
    entry.responseOffset = number(response.getHeader('Upload-Offset'))
    if (entry.status >= 400) entry.responseBody = response.getBody()
    const id = response.getHeader('Upload-Id')
    if (id) uploadIds.push(id)
  },
})

function number(value) {
  return value === undefined || value === null || value === '' ? null : Number(value)
}

function finished() {
  return new Promise((resolve) => {
    let settled = false
    let abortAt = options.abortAfterBytes ?? Number.POSITIVE_INFINITY
    const settle = (outcome) => {
      if (settled && outcome.error) lateErrors.push(asJson(outcome.error))
      settled = true
      resolve(outcome)
    }
    const upload = new tus.Upload(source(), {
      ...common,
      onProgress(sent) {
        bytesSent = sent
        if (sent < abortAt) return
        abortAt = Number.POSITIVE_INFINITY
        abort().catch((error) => settle({ upload, aborted: true, error }))
      },
      onSuccess: () => settle({ upload, error: null }),
      onError: (error) => settle({ upload, error }),
    })
    async function abort() {
      const terminate = Boolean(options.terminate && !options.resume)
      await upload.abort(terminate)
      if (options.resume) upload.start()
      else settle({ upload, aborted: true, terminated: terminate, error: null })
    }
    resumePrevious(upload).then(() => upload.start(), (error) => settle({ upload, error }))
  })
}

async function resumePrevious(upload) {
  if (!options.urlStorage) return
  const previous = await upload.findPreviousUploads()
  if (previous.length) upload.resumeFromPreviousUpload(previous[0])
}

let { upload, aborted = false, terminated = false, error } = await finished()
if (options.terminate && !aborted && !error) {
  try {
    await tus.Upload.terminate(upload.url, common)
    terminated = true
  } catch (refusal) {
    error = refusal
  }
}
const answer = {
  ok: !error && !aborted,
  aborted,
  terminated,
  url: upload.url ?? null,
  uploadId: uploadIds.at(-1) ?? null,
  bytesSent,
  error: asJson(error),
  lateErrors,
  requests,
}
// Not process.exit(): it would cut off a long line that is still being written to a pipe.
process.stdout.write(`${JSON.stringify(answer)}\n`)
