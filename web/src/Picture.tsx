// The picture of a question: chosen or dropped, shown small, sent as it is.
import { useRef, useState } from "preact/hooks";

const KINDS = ["image/png", "image/jpeg", "image/webp"];

export function Picture({ most, image, onImage }: { most: number; image: string | null; onImage: (image: string | null) => void }) {
  const picker = useRef<HTMLInputElement>(null);
  const [wrong, setWrong] = useState<string | null>(null);
  const take = (file: File | undefined) => {
    if (file === undefined) return;
    if (!KINDS.includes(file.type)) return setWrong(`${file.name} is no PNG, JPEG or WebP.`);
    if (file.size > most) return setWrong(`${file.name} has ${Math.ceil(file.size / 1e6)} MB, and this server takes ${Math.floor(most / 1e6)}. Make it smaller.`);
    const reader = new FileReader();
    reader.onload = () => {
      setWrong(null);
      onImage(String(reader.result));
    };
    reader.onerror = () => setWrong(`${file.name} cannot be read.`);
    reader.readAsDataURL(file);
  };
  return (
    <div
      class="picture"
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        const file = event.dataTransfer?.files[0];
        if (!file?.type.startsWith("image/")) return;
        event.preventDefault();
        take(file);
      }}
    >
      {image !== null && <img src={image} alt="The picture of the question" />}
      <button type="button" class="button" onClick={() => picker.current?.click()}>
        {image === null ? "Choose a picture" : "Another picture"}
      </button>
      {image !== null && (
        <button type="button" class="quiet" onClick={() => onImage(null)}>
          Remove the picture
        </button>
      )}
      <input
        ref={picker}
        type="file"
        hidden
        accept={KINDS.join()}
        aria-label="Picture"
        onChange={(event) => {
          const file = event.currentTarget.files?.[0];
          event.currentTarget.value = "";
          take(file);
        }}
      />
      {wrong !== null && (
        <p class="notice error" role="alert">
          {wrong}
        </p>
      )}
    </div>
  );
}
