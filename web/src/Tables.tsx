// Results that are tables or printed text, and what a result was made with.
import type { Result, Table } from "./payload";
import { amount, capital } from "./words";

const MOST = 300;

export function Tables({ result }: { result: Result }) {
  const text = result.text ?? "";
  const tables = result.tables ?? [];
  return (
    <>
      {(result.notes ?? []).map((note) => (
        <p class="said" key={note}>
          {note}
        </p>
      ))}
      {tables.map((table, at) => (
        <PlainTable key={at} table={table} />
      ))}
      {text !== "" &&
        (tables.length + (result.parts ?? []).length > 0 ? (
          <details class="printed">
            <summary>As it is printed</summary>
            <pre tabIndex={0}>{text}</pre>
          </details>
        ) : (
          <pre tabIndex={0}>{text}</pre>
        ))}
    </>
  );
}

function PlainTable({ table }: { table: Table }) {
  const numeric = table.columns.map((_, at) => table.rows.every((row) => typeof row[at] === "number" || row[at] === null));
  const whole = table.columns.map((_, at) => table.rows.every((row) => row[at] === null || Number.isInteger(row[at])));
  const written = (value: Table["rows"][number][number], at: number) =>
    typeof value === "number" ? whole[at] ? String(value).replace("-", "−") : amount(value) : <bdi>{String(value ?? "")}</bdi>;
  return (
    <section class="plain">
      {table.title && <h2>{capital(table.title)}</h2>}
      <div class="frame scrolls" tabIndex={0} role="region" aria-label={table.title || "table"}>
        <table>
          <thead>
            <tr>
              {table.columns.map((column, at) => (
                <th key={at} scope="col" class={numeric[at] ? "number" : ""}>
                  {column}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {table.rows.slice(0, MOST).map((row, line) => (
              <tr key={line}>
                {row.map((value, at) => (
                  <td key={at} class={numeric[at] ? "number" : ""}>
                    {written(value, at)}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {table.rows.length > MOST && <p class="said">and {(table.rows.length - MOST).toLocaleString("en")} more lines; the JSON has all.</p>}
    </section>
  );
}

export function Origin({ result, madeBy }: { result: Result; madeBy: string }) {
  const facts: [string, string][] = [
    ["model", result.model_class],
    ["checkpoint", result.checkpoint],
    ["rules", result.rules],
    ["time", result.seconds ? `${amount(result.seconds)} s` : ""],
    ...Object.entries(result.versions ?? {}),
    ["page", madeBy],
  ];
  return (
    <details class="origin">
      <summary>How it was made</summary>
      <dl>
        {facts
          .filter(([, value]) => value)
          .map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
      </dl>
    </details>
  );
}
