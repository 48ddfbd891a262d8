"""Face detection in a FastAPI service of your own: uvicorn --app-dir examples service:app

`pyface serve` is a complete service, which also gathers requests into batches and limits what may wait.
"""

from fastapi import FastAPI, HTTPException, UploadFile

import pyface

app = FastAPI()
detector = pyface.FaceDetector()


@app.post("/faces")
def faces(photo: UploadFile) -> dict:  # not async: FastAPI calls it in threads, and a detector may be used by several
    """The faces of a photo, as in the lines of `pyface detect`."""
    try:
        return detector(photo.file).to_dict()
    except pyface.ImageError as error:
        raise HTTPException(422, str(error)) from None
